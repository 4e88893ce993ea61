// Vectors of one register, the functions that layers apply to them, and one small matrix product.
#pragma once

#include <omp.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace gsym {

// TILE_ROWS x TILE_VECTORS accumulators, a row of the right factor and one broadcast number fill
// the registers; tiles of fewer vectors may have MOST_ROWS.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_VECTORS = 4;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, TILE_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, TILE_VECTORS = 4;
#else
constexpr int VECTOR_BYTES = 16, TILE_VECTORS = 2;
#endif
constexpr int TILE_ROWS = 6, MOST_ROWS = 2 * TILE_ROWS;

template <typename T> struct Simd;

template <> struct Simd<float> {
  // Rows of a tensor begin anywhere, hence the alignment of one number.
  typedef float Vec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int exponent_shift = 23, exponent_bias = 127;
  static constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float least = -87.0f, most = 89.0f;  // exp is a normal number, and infinity
  static constexpr int terms = 7;
};

template <> struct Simd<double> {
  typedef double Vec __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int exponent_shift = 52, exponent_bias = 1023;
  static constexpr double rounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr double least = -708.0, most = 710.0;
  static constexpr int terms = 13;
};

template <typename T> using Vec = typename Simd<T>::Vec;

template <typename T> constexpr int LANES = VECTOR_BYTES / sizeof(T);

// Rows of a product that are computed side by side.
template <typename T> inline int tile_rows(int64_t width) {
  return width < TILE_VECTORS * LANES<T> ? MOST_ROWS : TILE_ROWS;
}

template <typename T> inline Vec<T> &at(T *x) { return *reinterpret_cast<Vec<T> *>(x); }

template <typename T> inline const Vec<T> &at(const T *x) {
  return *reinterpret_cast<const Vec<T> *>(x);
}

// Whole vectors that hold a number of channels.
template <typename T> inline int64_t padded(int64_t count) {
  return (count + LANES<T> - 1) / LANES<T> * LANES<T>;
}

template <typename T> inline void add(T *to, const T *from, int64_t count) {
  int64_t j = 0;
  for (; j + LANES<T> <= count; j += LANES<T>) at(to + j) += at(from + j);
  for (; j < count; j++) to[j] += from[j];
}

template <typename T> inline void add_scaled(T *to, const T *from, T factor, int64_t count) {
  int64_t j = 0;
  for (; j + LANES<T> <= count; j += LANES<T>) at(to + j) += at(from + j) * factor;
  for (; j < count; j++) to[j] += from[j] * factor;
}

template <typename T> inline T sum(Vec<T> x) {
  // By halves: one after another, every addition would wait for the one before.
  T parts[LANES<T>];
  at(parts) = x;
  for (int half = LANES<T> / 2; half; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return parts[0];
}

// Written past the caches, which keep what is read; the address is that of a whole vector.
template <typename T> inline void pass_by(T *to, Vec<T> x) {
#if defined(__AVX512F__)
  _mm512_stream_ps((float *)to, (__m512)x);
#elif defined(__AVX__)
  _mm256_stream_ps((float *)to, (__m256)x);
#else
  at(to) = x;
#endif
}

// Other threads see what was passed by before they see what this one writes next.
inline void settle() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

// NaN stays. Compilers make two instructions each of comparing and choosing.
#if defined(__AVX512F__)
inline Vec<float> limited(Vec<float> x, Vec<float> least, Vec<float> most) {
  return (Vec<float>)_mm512_max_ps((__m512)least, _mm512_min_ps((__m512)most, (__m512)x));
}
inline Vec<double> limited(Vec<double> x, Vec<double> least, Vec<double> most) {
  return (Vec<double>)_mm512_max_pd((__m512d)least, _mm512_min_pd((__m512d)most, (__m512d)x));
}
#elif defined(__AVX__)
inline Vec<float> limited(Vec<float> x, Vec<float> least, Vec<float> most) {
  return (Vec<float>)_mm256_max_ps((__m256)least, _mm256_min_ps((__m256)most, (__m256)x));
}
inline Vec<double> limited(Vec<double> x, Vec<double> least, Vec<double> most) {
  return (Vec<double>)_mm256_max_pd((__m256d)least, _mm256_min_pd((__m256d)most, (__m256d)x));
}
#else
template <typename V> inline V limited(V x, V least, V most) {
  x = x > most ? most : x;
  return x < least ? least : x;
}
#endif

constexpr double factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }

// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, to within two units in the last place; NaN stays NaN.
template <typename T> inline Vec<T> exponential(Vec<T> x) {
  using S = Simd<T>;
  x = limited(x, Vec<T>{} + S::least, Vec<T>{} + S::most);
  Vec<T> shifted = x * T(1.4426950408889634) + S::rounder;
  Vec<T> n = shifted - S::rounder;
  Vec<T> r = (x - n * S::ln2_high) - n * S::ln2_low;
  Vec<T> value = Vec<T>{} + T(1 / factorial(S::terms));
  for (int i = S::terms - 1; i >= 0; i--) value = value * r + T(1 / factorial(i));
  // The low bits of the rounded number are n.
  typename S::Bits scale = ((typename S::Bits)shifted + S::exponent_bias) << S::exponent_shift;
  return value * (Vec<T>)scale;
}

template <typename T> inline Vec<T> sigmoid(Vec<T> x) { return T(1) / (T(1) + exponential<T>(-x)); }

template <typename T> inline Vec<T> silu(Vec<T> x) { return x * sigmoid<T>(x); }

template <typename T> inline Vec<T> silu(Vec<T> x, Vec<T> &slope) {
  Vec<T> open = sigmoid<T>(x);
  slope = open * (T(1) + x * (T(1) - open));
  return x * open;
}

// c[r] = init[r] + sum over i of a[r][i * step] * b[i], for R rows and the V vectors of a column
// panel. Rows of `a` one after another and step 1 give a product, columns and the stride of `a` a
// product with its transpose; scattered rows need no copy.
template <typename T, int R, int V, bool passing>
inline void product_tile(const T *const *a, int64_t step, int64_t count, const T *b, int64_t stride,
                         const T *const *init, T *const *c, int64_t column) {
  Vec<T> total[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) total[r][v] = at(init[r] + column + v * LANES<T>);
  b += column;
  for (int64_t i = 0; i < count; i++, b += stride) {
    Vec<T> right[V];
    for (int v = 0; v < V; v++) right[v] = at(b + v * LANES<T>);
    for (int r = 0; r < R; r++) {
      T left = a[r][i * step];
      for (int v = 0; v < V; v++) total[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) {
      T *to = c[r] + column + v * LANES<T>;
      if constexpr (passing)
        pass_by(to, total[r][v]);
      else
        at(to) = total[r][v];
    }
}

template <typename T, int V, bool passing, int R = V < TILE_VECTORS ? MOST_ROWS : TILE_ROWS>
inline void product_panel(int rows, const T *const *a, int64_t step, int64_t count, const T *b,
                          int64_t stride, const T *const *init, T *const *c, int64_t column) {
  if constexpr (R > 1)
    if (rows < R)
      return product_panel<T, V, passing, R - 1>(rows, a, step, count, b, stride, init, c, column);
  product_tile<T, R, V, passing>(a, step, count, b, stride, init, c, column);
}

// At most tile_rows() rows of a product, all columns; `width` is a multiple of the lanes.
template <typename T, bool passing = false>
inline void product_rows(int rows, const T *const *a, int64_t step, int64_t count, const T *b,
                         int64_t width, const T *const *init, T *const *c) {
  for (int64_t column = 0, vectors; column < width; column += vectors * LANES<T>) {
    int64_t left = (width - column) / LANES<T>;
    vectors = left >= TILE_VECTORS ? TILE_VECTORS : left >= 2 ? 2 : 1;
    if (vectors == TILE_VECTORS)
      product_panel<T, TILE_VECTORS, passing>(rows, a, step, count, b, width, init, c, column);
    else if (vectors == 2)
      product_panel<T, 2, passing>(rows, a, step, count, b, width, init, c, column);
    else
      product_panel<T, 1, passing>(rows, a, step, count, b, width, init, c, column);
  }
}

struct Nothing {
  void operator()() const {}
};

// c [m, width] = init + a [m, count] b [count, width]; rows of init lie `init_stride` apart, 0 for
// one row that all share. What is to be done meanwhile is called after every tile.
template <typename T, typename Meanwhile = Nothing>
inline void product(int64_t m, const T *a, int64_t a_stride, int64_t count, const T *b,
                    int64_t width, const T *init, int64_t init_stride, T *c,
                    Meanwhile meanwhile = {}) {
  int most = tile_rows<T>(width);
  for (int64_t first = 0; first < m; first += most) {
    int rows = std::min<int64_t>(most, m - first);
    const T *left[MOST_ROWS], *from[MOST_ROWS];
    T *to[MOST_ROWS];
    for (int r = 0; r < rows; r++) {
      left[r] = a + (first + r) * a_stride;
      from[r] = init + (first + r) * init_stride;
      to[r] = c + (first + r) * width;
    }
    product_rows(rows, left, 1, count, b, width, from, to);
    meanwhile();
  }
}

// c [m, width] += a^T b, with a [count, a_stride] of which m columns count and b [count, width].
template <typename T>
inline void add_outer(int64_t m, const T *a, int64_t a_stride, int64_t count, const T *b,
                      int64_t width, T *c) {
  int most = tile_rows<T>(width);
  for (int64_t first = 0; first < m; first += most) {
    int rows = std::min<int64_t>(most, m - first);
    const T *left[MOST_ROWS];
    T *to[MOST_ROWS];
    for (int r = 0; r < rows; r++) {
      left[r] = a + first + r;
      to[r] = c + (first + r) * width;
    }
    product_rows(rows, left, a_stride, count, b, width, to, to);
  }
}

// Where whole vectors may begin, in memory that holds LANES more numbers than are wanted.
template <typename T> inline T *aligned(std::vector<T> &memory) {
  auto begin = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (-begin % VECTOR_BYTES) / sizeof(T);
}

// A matrix [rows, columns] turned, and zeros where a row of the result is longer; no matrix gives
// none.
template <typename T> struct Turned {
  std::vector<T> memory;
  T *data;
  Turned(const T *x, int64_t rows, int64_t columns, int64_t stride, int64_t turned_stride)
      : memory(x ? columns * turned_stride + LANES<T> : 0), data(aligned(memory)) {
    for (int64_t i = 0; x && i < rows; i++)
      for (int64_t j = 0; j < columns; j++) data[j * turned_stride + i] = x[i * stride + j];
  }
  Turned(const T *x, int64_t rows, int64_t columns) : Turned(x, rows, columns, columns, rows) {}
  Turned(const Turned &) = delete;
};

// Memory that a thread keeps from call to call, since a fresh page costs a fault. One use at a
// time.
template <typename T> inline T *scratch(size_t count) {
  static thread_local std::vector<T> memory;
  if (memory.size() < count + LANES<T>) memory.resize(count + LANES<T>);
  return aligned(memory);
}

} // namespace gsym
