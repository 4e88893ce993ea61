// Linear maps that all rows share: gsym.kernels.reference.row_mlp and linear_pair, with gradients.
//
// Every thread takes neighbouring blocks of rows. Widths are whole vectors.
#include "call.h"
#include "vector.h"

namespace gsym {
namespace {

// Rows that go through all maps together: what lies between stays in the first cache.
constexpr int64_t ROWS = 48;
// Blocks that are added one after another.
constexpr int64_t PIECE = 16;

// Mirrored in cpp/nodes.py.
template <typename T> struct Mlp {
  int64_t rows, in, extra, hidden, out, threads;
  int64_t residual;             // whether the result is added to x
  const T *x, *more;            // [rows, in], [rows, extra]
  const T *first, *first_bias;  // [in + extra, hidden], [hidden]
  const T *last, *last_bias;    // [hidden, out], [out]
  // Where the forward pass leaves the argument of SiLU, [rows, hidden], for the gradient; nowhere,
  // and it computes that again.
  T *argument;
};

template <typename T> struct Pair {
  int64_t rows, in, out, threads;
  int64_t adds;  // whether the gradient by x is added to what is there
  const T *x, *first, *first_bias, *second;  // [rows, in], [in, out], [out], [in, out]
};

// Runs work(first, count, sums, memory) on all blocks of rows, with `needs` numbers of memory, whole
// vectors; the sums [numbers] of every thread are added to `total` in the order of the threads, so
// that their number may change the last bits.
template <typename T, typename Work>
void by_blocks(int64_t rows, int64_t threads, int64_t needs, int64_t numbers, T *total, Work work) {
  static thread_local std::vector<double> shared;
  if (shared.size() < size_t(threads * numbers)) shared.resize(threads * numbers);
  double *lanes = shared.data();
  std::vector<int64_t> pieces(threads);  // that every thread has added to its lane
  int64_t blocks = (rows + ROWS - 1) / ROWS;
#pragma omp parallel num_threads(threads)
  {
    T *memory = scratch<T>(needs + numbers), *sums = memory + needs;
    int64_t thread = omp_get_thread_num(), count = 0;
    double *lane = lanes + thread * numbers;
    auto flush = [&] {
      bool first = pieces[thread]++ == 0;
      for (int64_t i = 0; i < numbers; i++) lane[i] = first ? sums[i] : lane[i] + sums[i];
      count = 0;
    };
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < blocks; block++) {
      if (count++ == 0) std::fill_n(sums, numbers, T(0));
      work(block * ROWS, std::min(ROWS, rows - block * ROWS), sums, memory);
      // The rounding error of a running sum grows with its length.
      if (count == PIECE) flush();
    }
    if (count) flush();
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < numbers; i++) {
      double sum = 0;
      for (int64_t other = 0; other < threads; other++)
        if (pieces[other]) sum += lanes[other * numbers + i];
      total[i] = sum;
    }
  }
}

// total [width] += the rows of x.
template <typename T> void add_rows(int64_t count, const T *x, int64_t width, T *total) {
  for (int64_t j = 0; j < width; j += LANES<T>) {
    Vec<T> sum = {};
    for (int64_t r = 0; r < count; r++) sum += at(x + r * width + j);
    at(total + j) += sum;
  }
}

template <typename T> void first_layer(const Mlp<T> &g, int64_t row, int64_t count, T *hidden) {
  int64_t h = g.hidden;
  product(count, g.x + row * g.in, g.in, g.in, g.first, h, g.first_bias, 0, hidden);
  if (g.more)
    product(count, g.more + row * g.extra, g.extra, g.extra, g.first + g.in * h, h, hidden, h,
            hidden);
}

template <typename T> void mlp_forward(const Mlp<T> &g, T *y) {
  int64_t h = g.hidden;
  by_blocks<T>(g.rows, g.threads, ROWS * h, 0, nullptr,
               [&](int64_t row, int64_t count, T *, T *hidden) {
                 T *argument = g.argument ? g.argument + row * h : hidden, *out = y + row * g.out;
                 first_layer(g, row, count, argument);
                 for (int64_t i = 0; i < count * h; i += LANES<T>)
                   at(hidden + i) = silu<T>(at(argument + i));
                 product(count, hidden, h, h, g.last, g.out, g.last_bias, 0, out);
                 if (g.residual) add(out, g.x + row * g.in, count * g.in);
               });
}

// `weights` is first, first_bias, last and last_bias, one after another.
template <typename T>
void mlp_backward(const Mlp<T> &g, const T *grad, T *by_x, T *by_more, T *weights) {
  int64_t h = g.hidden, bias = (g.in + g.extra) * h, last = bias + h, last_bias = last + h * g.out;
  Turned<T> last_turned(g.last, h, g.out), turned(g.first, g.in, h);
  Turned<T> more_turned(g.first + g.in * h, g.extra, h);
  std::vector<T> nothing(std::max({h, g.in, g.extra}));
  by_blocks<T>(
      g.rows, g.threads, 2 * ROWS * h, last_bias + g.out, weights,
      [&](int64_t row, int64_t count, T *sums, T *hidden) {
        T *by_hidden = hidden + ROWS * h;
        const T *given = grad + row * g.out;
        T *argument = g.argument ? g.argument + row * h : hidden;
        if (!g.argument) first_layer(g, row, count, hidden);
        product(count, given, g.out, g.out, last_turned.data, h, nothing.data(), 0, by_hidden);
        for (int64_t i = 0; i < count * h; i += LANES<T>) {
          Vec<T> slope;
          at(hidden + i) = silu<T>(at(argument + i), slope);
          at(by_hidden + i) *= slope;
        }
        add_outer(h, hidden, h, count, given, g.out, sums + last);
        add_rows(count, given, g.out, sums + last_bias);
        add_outer(g.in, g.x + row * g.in, g.in, count, by_hidden, h, sums);
        add_rows(count, by_hidden, h, sums + bias);
        product(count, by_hidden, h, h, turned.data, g.in, g.residual ? given : nothing.data(),
                g.residual ? g.in : 0, by_x + row * g.in);
        if (!g.more) return;
        add_outer(g.extra, g.more + row * g.extra, g.extra, count, by_hidden, h, sums + g.in * h);
        product(count, by_hidden, h, h, more_turned.data, g.extra, nothing.data(), 0,
                by_more + row * g.extra);
      });
}

template <typename T> void pair_forward(const Pair<T> &g, T *y, T *z) {
  std::vector<T> nothing(g.out);
  by_blocks<T>(g.rows, g.threads, 0, 0, nullptr, [&](int64_t row, int64_t count, T *, T *) {
    const T *x = g.x + row * g.in;
    product(count, x, g.in, g.in, g.first, g.out, g.first_bias, 0, y + row * g.out);
    product(count, x, g.in, g.in, g.second, g.out, nothing.data(), 0, z + row * g.out);
  });
}

// `weights` is first, first_bias and second, one after another.
template <typename T>
void pair_backward(const Pair<T> &g, const T *by_y, const T *by_z, T *by_x, T *weights) {
  int64_t bias = g.in * g.out, second = bias + g.out;
  Turned<T> turned(g.first, g.in, g.out), second_turned(g.second, g.in, g.out);
  std::vector<T> nothing(g.in);
  by_blocks<T>(g.rows, g.threads, 0, second + g.in * g.out, weights,
               [&](int64_t row, int64_t count, T *sums, T *) {
                 const T *x = g.x + row * g.in, *y = by_y + row * g.out, *z = by_z + row * g.out;
                 T *out = by_x + row * g.in;
                 product(count, y, g.out, g.out, turned.data, g.in, g.adds ? out : nothing.data(),
                         g.adds ? g.in : 0, out);
                 product(count, z, g.out, g.out, second_turned.data, g.in, out, g.in, out);
                 add_outer(g.in, x, g.in, count, y, g.out, sums);
                 add_rows(count, y, g.out, sums + bias);
                 add_outer(g.in, x, g.in, count, z, g.out, sums + second);
               });
}

} // namespace
} // namespace gsym

#define GSYM_NODES(T, NAME)                                                                        \
  extern "C" int gsym_mlp_forward_##NAME(const gsym::Mlp<T> *g, T *const *results) {               \
    return gsym::answer([&] { gsym::mlp_forward(*g, results[0]); });                               \
  }                                                                                                \
  extern "C" int gsym_mlp_backward_##NAME(const gsym::Mlp<T> *g, T *const *given) {                \
    return gsym::answer([&] { gsym::mlp_backward(*g, given[0], given[1], given[2], given[3]); });  \
  }                                                                                                \
  extern "C" int gsym_pair_forward_##NAME(const gsym::Pair<T> *g, T *const *results) {             \
    return gsym::answer([&] { gsym::pair_forward(*g, results[0], results[1]); });                  \
  }                                                                                                \
  extern "C" int gsym_pair_backward_##NAME(const gsym::Pair<T> *g, T *const *given) {              \
    return gsym::answer([&] { gsym::pair_backward(*g, given[0], given[1], given[2], given[3]); }); \
  }

GSYM_NODES(float, float32)
GSYM_NODES(double, float64)
