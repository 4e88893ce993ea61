// Rows reduced by segment, and rows times the matrix of their segment.
//
// Work is cut into pieces that depend on nothing but sizes, and what several pieces add to one row
// is added at the end, in order: neither the threads nor their number change a bit.
#include <limits>

#include "call.h"
#include "vector.h"

namespace gsym {
namespace {

// Rows that are added one after another: the rounding error of a running sum grows with its length.
constexpr int64_t PIECE = 1024;
// Rows that one thread takes at a time when it pools in the order of memory.
constexpr int64_t POOL_ROWS = 8192;
// How many rows ahead the memory is asked for, where rows lie in order and where they are anywhere.
constexpr int64_t AHEAD = 16, FAR_AHEAD = 48;
// Sums that threads keep for themselves before they are added up.
constexpr int64_t LANE_BYTES = 1 << 24, MOST_LANES = 16;
// Bytes that no cache holds.
constexpr int64_t LARGE = 1 << 25;

enum Kind { SUM, WEIGHTED, MAXIMUM, TIES };

// Mirrored in cpp/rows.py.
template <typename T, typename I> struct Reduction {
  int64_t batch, rows, entries, segments, channels, weight_stride, threads;
  const I *index, *columns, *order, *pointers;  // [rows], [entries] twice, [segments + 1]
  const T *x, *y;                               // [batch, rows, c], [batch, segments, c]
  const T *weight;                              // [batch or 1, entries]
  T *out;
};

template <typename T, typename I> struct Product {
  int64_t batch, rows, in, out, segments, block, weight_stride, threads;
  const I *index, *local, *order, *pointers;
  const T *x, *y, *weight, *shared;  // [batch, rows, in], [.., out], [s or 1, in, out], [b, s, out]
  T *result;
};

inline int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <bool WRITTEN = false, typename T> inline void prefetch(const T *row, int64_t count) {
  for (int64_t c = 0; c < count; c += 64 / sizeof(T)) __builtin_prefetch(row + c, WRITTEN);
}

// Of memory that is read once: it need not stay in the caches.
template <typename T> inline void prefetch_once(const T *row, int64_t count) {
  for (int64_t c = 0; c < count; c += 64 / sizeof(T)) __builtin_prefetch(row + c, 0, 0);
}

// Whether the caches hold too little for a tensor, so that what is written need not go there; and
// whether rows of it begin where whole vectors do.
template <typename T> inline bool passes(int64_t numbers, const T *out, int64_t width) {
  bool whole = width % LANES<T> == 0 && reinterpret_cast<uintptr_t>(out) % VECTOR_BYTES == 0;
  return whole && numbers * int64_t(sizeof(T)) > LARGE;
}

// NaN is larger than any number and stays.
template <Kind kind, typename V> inline V join(V total, V next) {
  if constexpr (kind == MAXIMUM) return (next > total) | (next != next) ? next : total;
  return total + next;
}

template <Kind kind, typename T>
constexpr T NEUTRAL = kind == MAXIMUM ? -std::numeric_limits<T>::infinity() : T(0);

// Items that a thread takes at once: they are neighbours, and it has asked for the memory of the
// next one, which another thread might have to fetch from afar.
inline int64_t stretch(int64_t items, int64_t threads) {
  return std::max<int64_t>(items / (8 * threads), 1);
}

// V vectors of the entries [first, end) joined, whose rows are `in_order` or anywhere.
template <Kind kind, int V, bool in_order, typename T, typename I>
inline void join_panel(const Reduction<T, I> &g, const T *x, const T *weight, const T *high,
                       int64_t first, int64_t end, bool passing, T *out) {
  Vec<T> total[V];
  for (int v = 0; v < V; v++) total[v] = Vec<T>{} + NEUTRAL<kind, T>;
  // To look every row up takes a quarter of the time that reading them in order does.
  const T *row = x + g.columns[first] * g.channels;
  for (int64_t p = first; p < end; p++, row += g.channels) {
    if constexpr (!in_order) row = x + g.columns[p] * g.channels;
    // Beyond this segment others follow.
    if (in_order)
      prefetch_once(row + AHEAD * g.channels, V * LANES<T>);
    else if (p + FAR_AHEAD < g.entries)
      prefetch(x + g.columns[p + FAR_AHEAD] * g.channels, V * LANES<T>);
    for (int v = 0; v < V; v++) {
      Vec<T> value = at(row + v * LANES<T>);
      if constexpr (kind == WEIGHTED) value *= weight[g.order[p]];
      if constexpr (kind == TIES)
        value = value == at(high + v * LANES<T>) ? Vec<T>{} + T(1) : Vec<T>{};
      total[v] = join<kind>(total[v], value);
    }
  }
  for (int v = 0; v < V; v++) {
    T *to = out + v * LANES<T>;
    passing ? pass_by(to, total[v]) : void(at(to) = total[v]);
  }
}

template <Kind kind, bool in_order, typename T, typename I>
inline void join_entries(const Reduction<T, I> &g, int64_t sample, int64_t segment, int64_t first,
                         int64_t end, bool passing, T *out) {
  const T *x = g.x + sample * g.rows * g.channels, *weight = g.weight + sample * g.weight_stride;
  const T *high = g.y + (sample * g.segments + segment) * g.channels;
  int64_t c = 0;
  for (int64_t step; g.channels - c >= LANES<T>; c += step * LANES<T>) {
    int64_t left = (g.channels - c) / LANES<T>;
    step = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    switch (step) {
    case 8: join_panel<kind, 8, in_order>(g, x + c, weight, high + c, first, end, passing, out + c); break;
    case 4: join_panel<kind, 4, in_order>(g, x + c, weight, high + c, first, end, passing, out + c); break;
    case 2: join_panel<kind, 2, in_order>(g, x + c, weight, high + c, first, end, passing, out + c); break;
    default: join_panel<kind, 1, in_order>(g, x + c, weight, high + c, first, end, passing, out + c);
    }
  }
  int64_t tail = g.channels - c;
  T total[LANES<T>];
  std::fill_n(total, tail, NEUTRAL<kind, T>);
  for (int64_t p = first; tail && p < end; p++) {
    const T *row = x + g.columns[p] * g.channels + c;
    T factor = kind == WEIGHTED ? weight[g.order[p]] : T(1);
    for (int64_t j = 0; j < tail; j++)
      total[j] = join<kind>(total[j], kind == TIES ? T(row[j] == high[c + j]) : row[j] * factor);
  }
  std::copy_n(total, tail, out + c);
}

template <Kind kind, typename T, typename I>
inline void join_entries(const Reduction<T, I> &g, int64_t sample, int64_t segment, int64_t first,
                         int64_t end, bool passing, T *out) {
  // Rows by segment come in ascending order.
  bool rows = g.columns == g.order, run = g.columns[end - 1] - g.columns[first] == end - 1 - first;
  if (rows && run)
    join_entries<kind, true>(g, sample, segment, first, end, passing, out);
  else
    join_entries<kind, false>(g, sample, segment, first, end, passing, out);
}

// Rows of every segment joined, in the order of the segments. An entry at the beginning of a piece
// may go on with a segment that an earlier piece has begun: that sum is carried.
template <Kind kind, typename T, typename I> void reduce(const Reduction<T, I> &g) {
  int64_t c = g.channels, pieces = std::max<int64_t>(parts(g.entries, PIECE), 1);
  std::vector<T> carries(g.batch * (pieces - 1) * c);
  std::vector<int64_t> carried(pieces, -1);
  bool passing = passes(g.batch * g.rows * c, g.out, c);
#pragma omp parallel num_threads(g.threads)
  {
    // All take equally long, and a thread that goes straight on has asked for the memory already.
#pragma omp for schedule(static)
    for (int64_t item = 0; item < g.batch * pieces; item++) {
      int64_t sample = item / pieces, piece = item % pieces;
      int64_t start = piece * PIECE, end = std::min(g.entries, start + PIECE);
      // The first segment that begins here or later.
      int64_t s = std::lower_bound(g.pointers, g.pointers + g.segments, I(start)) - g.pointers;
      int64_t stop = std::min<int64_t>(g.pointers[s], end);
      if (stop > start) {
        join_entries<kind>(g, sample, s - 1, start, stop, false,
                           &carries[(sample * (pieces - 1) + piece - 1) * c]);
        if (sample == 0) carried[piece] = s - 1;
      }
      bool last = piece == pieces - 1;
      for (; s < g.segments && (g.pointers[s] < end || last); s++) {
        T *out = g.out + (sample * g.segments + s) * c;
        int64_t next = std::min<int64_t>(g.pointers[s + 1], end);
        if (g.pointers[s] < next)
          join_entries<kind>(g, sample, s, g.pointers[s], next, passing, out);
        else
          std::fill_n(out, c, T(0));
      }
      if (passing) settle();
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < g.batch * pieces; item++) {
      int64_t sample = item / pieces, piece = item % pieces, end = piece + 1;
      // One thread adds what all pieces carry to one segment.
      if (carried[piece] < 0 || carried[piece] == carried[piece - 1]) continue;
      while (end < pieces && carried[end] == carried[piece]) end++;
      T *out = g.out + (sample * g.segments + carried[piece]) * c;
      const T *carry = &carries[(sample * (pieces - 1) + piece - 1) * c];
      for (int64_t j = 0; j < c; j++) {
        double total = out[j];
        for (int64_t i = 0; i < end - piece; i++) total = join<kind, double>(total, carry[i * c + j]);
        out[j] = total;
      }
    }
  }
}

// Sums by segment in the order of memory, where the sums of all segments stay in the cache.
template <typename T, typename I> void pool(const Reduction<T, I> &g) {
  int64_t c = g.channels, numbers = g.segments * c;
  // To set sums to zero and to add them up must cost less than what passes by in between.
  int64_t length = std::max(PIECE, 8 * g.segments), size = std::max(POOL_ROWS, 32 * g.segments);
  int64_t pieces = parts(g.rows, size);
  std::vector<T> partial(g.batch * pieces * numbers);
  int64_t near = stretch(g.batch * pieces, g.threads);
#pragma omp parallel num_threads(g.threads)
  {
    T *sums = scratch<T>(numbers);
#pragma omp for schedule(dynamic, near)
    for (int64_t item = 0; item < g.batch * pieces; item++) {
      int64_t sample = item / pieces, first = item % pieces * size;
      T *total = &partial[item * numbers];
      for (int64_t end = std::min(g.rows, first + size); first < end; first += length) {
        std::fill_n(sums, numbers, T(0));
        for (int64_t r = first; r < std::min(end, first + length); r++) {
          const T *row = g.x + (sample * g.rows + r) * c;
          T *sum = sums + g.index[r] * c;
          int64_t j = 0;
          for (; j + LANES<T> <= c; j += LANES<T>) at(sum + j) += at(row + j);
          for (; j < c; j++) sum[j] += row[j];
        }
        for (int64_t j = 0; j < numbers; j++) total[j] += sums[j];
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < g.batch * numbers; i++) {
      double total = 0;
      for (int64_t piece = 0; piece < pieces; piece++)
        total += partial[(i / numbers * pieces + piece) * numbers + i % numbers];
      g.out[i] = total;
    }
  }
}

// An index of rows comes where the sums of all segments stay in the cache.
template <typename T, typename I> void sum_rows(const Reduction<T, I> &g) {
  if (g.index) return pool(g);
  g.weight ? reduce<WEIGHTED>(g) : reduce<SUM>(g);
}

// Rows of the result are those of their segment in `weight` where x holds what `y` does.
template <typename T, typename I> void spread_ties(const Reduction<T, I> &g) {
  int64_t c = g.channels, pieces = parts(g.rows, PIECE);
  int64_t near = stretch(g.batch * pieces, g.threads);
#pragma omp parallel for num_threads(g.threads) schedule(dynamic, near)
  for (int64_t item = 0; item < g.batch * pieces; item++) {
    int64_t sample = item / pieces, start = item % pieces * PIECE;
    for (int64_t r = start; r < std::min(g.rows, start + PIECE); r++) {
      int64_t row = (sample * g.rows + r) * c, owner = (sample * g.segments + g.index[r]) * c, j = 0;
      for (; j + LANES<T> <= c; j += LANES<T>)
        at(g.out + row + j) = at(g.x + row + j) == at(g.y + owner + j) ? at(g.weight + owner + j)
                                                                       : Vec<T>{};
      for (; j < c; j++) g.out[row + j] = g.x[row + j] == g.y[owner + j] ? g.weight[owner + j] : T(0);
    }
  }
}

// What the rows of both ends of every entry give as a product.
template <typename T, typename I> void dot_rows(const Reduction<T, I> &g) {
  int64_t c = g.channels, pieces = parts(g.entries, PIECE);
  int64_t near = stretch(g.batch * pieces, g.threads);
#pragma omp parallel for num_threads(g.threads) schedule(dynamic, near)
  for (int64_t item = 0; item < g.batch * pieces; item++) {
    int64_t sample = item / pieces, start = item % pieces * PIECE;
    int64_t end = std::min(g.entries, start + PIECE);
    const T *x = g.x + sample * g.rows * c;
    int64_t s = std::upper_bound(g.pointers, g.pointers + g.segments, I(start)) - g.pointers - 1;
    for (int64_t p = start; p < end; p++) {
      while (g.pointers[s + 1] <= p) s++;
      if (p + FAR_AHEAD < g.entries) prefetch(x + g.columns[p + FAR_AHEAD] * c, c);
      const T *a = g.y + (sample * g.segments + s) * c, *b = x + g.columns[p] * c;
      Vec<T> total = {};
      T rest = 0;
      int64_t j = 0;
      for (; j + LANES<T> <= c; j += LANES<T>) total += at(a + j) * at(b + j);
      for (; j < c; j++) rest += a[j] * b[j];
      g.out[sample * g.entries + g.order[p]] = sum<T>(total) + rest;
    }
  }
}

// Walks through the runs of equal segment among rows that were sorted block by block; without such
// an order, all rows of the block are one run.
template <typename T, typename I> struct Runs {
  const Product<T, I> &g;
  int64_t place, end;
  int64_t first = 0, count = 0, segment = 0;

  Runs(const Product<T, I> &g, int64_t block)
      : g(g), place(block * g.block), end(std::min(g.rows, place + g.block)) {}
  int64_t row(int64_t i) const { return g.local ? g.local[first + i] : first + i; }
  bool next() {
    if (place == end) return false;
    first = place;
    if (!g.local) place = end;
    else
      for (segment = g.index[g.local[place]]; place < end; place++)
        if (g.index[g.local[place]] != segment) break;
    count = place - first;
    return true;
  }
};

template <typename T, typename I, bool passing> void multiply(const Product<T, I> &g) {
  int64_t width = padded<T>(g.out), blocks = parts(g.rows, g.block), most = tile_rows<T>(width);
  int64_t near = stretch(g.batch * blocks, g.threads);
#pragma omp parallel num_threads(g.threads)
  {
    T *zero = scratch<T>((1 + MOST_ROWS + g.in) * width + MOST_ROWS * width);
    T *results = zero + width, *starts = results + MOST_ROWS * width;
    T *matrix = starts + MOST_ROWS * width;
    std::fill_n(zero, (1 + MOST_ROWS + g.in + MOST_ROWS) * width, T(0));
#pragma omp for schedule(dynamic, near)
    for (int64_t item = 0; item < g.batch * blocks; item++) {
      int64_t sample = item / blocks;
      const T *x = g.x + sample * g.rows * g.in;
      const T *shared = g.shared ? g.shared + sample * g.segments * g.out : nullptr;
      T *y = g.result + sample * g.rows * g.out;
      int64_t next = sample * g.rows + (item % blocks + 1) * g.block;
      for (Runs<T, I> run(g, item % blocks); run.next();) {
        const T *weight = g.weight + run.segment * g.weight_stride;
        if (width != g.out) {
          for (int64_t i = 0; i < g.in; i++) std::copy_n(weight + i * g.out, g.out, matrix + i * width);
          weight = matrix;
        }
        // Tiles of nearly equal height, since low ones are slow.
        int64_t tiles = parts(run.count, most);
        for (int64_t i = 0, rows; i < run.count; i += rows, tiles--) {
          rows = parts(run.count - i, tiles);
          const T *left[MOST_ROWS], *from[MOST_ROWS];
          T *to[MOST_ROWS];
          for (int64_t r = 0; r < rows; r++) {
            int64_t row = run.row(i + r);
            left[r] = x + row * g.in;
            from[r] = shared ? shared + (g.local ? run.segment : g.index[row]) * g.out : zero;
            to[r] = y + row * g.out;
            // The next block comes into the cache in the order of memory, what is written as well.
            if (next < g.batch * g.rows) {
              prefetch(g.x + next * g.in, g.in);
              if (!passing) prefetch<true>(g.result + next * g.out, g.out);
            }
            next++;
            if (width == g.out) continue;
            to[r] = results + r * width;
            if (!shared) continue;
            std::copy_n(from[r], g.out, starts + r * width);
            from[r] = starts + r * width;
          }
          product_rows<T, passing>(rows, left, 1, g.in, weight, width, from, to);
          for (int64_t r = 0; width != g.out && r < rows; r++)
            std::copy_n(to[r], g.out, y + run.row(i + r) * g.out);
        }
      }
      if (passing) settle();
    }
  }
}

template <typename T, typename I> void multiply(const Product<T, I> &g) {
  bool passing = passes(g.batch * g.rows * g.out, g.result, g.out);
  passing ? multiply<T, I, true>(g) : multiply<T, I, false>(g);
}

// total [R rows of `width`] += sum over rows of x^T y, V vectors of it.
template <typename T, int R, int V>
inline void outer_tile(int64_t count, const T *const *x, int64_t from, const T *const *y,
                       int64_t column, T *total, int64_t width) {
  Vec<T> sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = Vec<T>{};
  for (int64_t i = 0; i < count; i++) {
    const T *left = x[i] + from;
    Vec<T> right[V];
    for (int v = 0; v < V; v++) right[v] = at(y[i] + column + v * LANES<T>);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sum[r][v] += left[r] * right[v];
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++)
      at(total + (from + r) * width + column + v * LANES<T>) += sum[r][v];
}

template <typename T, int V>
inline void outer_panel(int64_t count, const T *const *x, int64_t in, const T *const *y,
                        int64_t column, T *total, int64_t width) {
  int64_t i = 0;
  for (; in - i >= 8; i += 8) outer_tile<T, 8, V>(count, x, i, y, column, total, width);
  if (in & 4) outer_tile<T, 4, V>(count, x, i, y, column, total, width), i += 4;
  if (in & 2) outer_tile<T, 2, V>(count, x, i, y, column, total, width), i += 2;
  if (in & 1) outer_tile<T, 1, V>(count, x, i, y, column, total, width);
}

// Rows of x and y, at most PIECE of them, taken up for outer products. Rows of y that are no whole
// vectors are copied.
template <typename T> struct Pairs {
  int64_t in, out, width;
  T *copies;
  int64_t count = 0;
  const T *x[PIECE], *y[PIECE];

  void take(const T *left, const T *right) {
    x[count] = left, y[count] = right;
    if (width != out) {
      T *copy = copies + count * width;
      std::fill_n(std::copy_n(right, out, copy), width - out, T(0));
      y[count] = copy;
    }
    count++;
  }
  void add_to(T *total) {
    int64_t column = 0;
    for (; width - column >= 2 * LANES<T>; column += 2 * LANES<T>)
      outer_panel<T, 2>(count, x, in, y, column, total, width);
    if (column < width) outer_panel<T, 1>(count, x, in, y, column, total, width);
    count = 0;
  }
};

template <typename T, typename I> void multiply_outer(const Product<T, I> &g) {
  int64_t width = padded<T>(g.out), matrix = g.in * width, matrices = g.local ? g.segments : 1;
  int64_t numbers = matrices * matrix, blocks = parts(g.rows, g.block), items = g.batch * blocks;
  int64_t lanes = std::min(LANE_BYTES / int64_t(sizeof(T)) / numbers, std::min(items, MOST_LANES));
  std::vector<T> partial(std::max<int64_t>(lanes, 0) * numbers);
#pragma omp parallel num_threads(g.threads)
  {
    T *memory = scratch<T>(PIECE * width + matrix);
    Pairs<T> pairs{g.in, g.out, width, memory + matrix};
    if (lanes > 0) {
      // Every lane adds up its share of the blocks.
#pragma omp for schedule(dynamic)
      for (int64_t lane = 0; lane < lanes; lane++)
        for (int64_t item = items * lane / lanes; item < items * (lane + 1) / lanes; item++) {
          const T *x = g.x + item / blocks * g.rows * g.in, *y = g.y + item / blocks * g.rows * g.out;
          int64_t next = item / blocks * g.rows + (item % blocks + 1) * g.block;
          for (Runs<T, I> run(g, item % blocks); run.next();) {
            T *total = &partial[lane * numbers + run.segment * matrix];
            for (int64_t i = 0; i < run.count; i++) {
              int64_t row = run.row(i);
              if (next < g.batch * g.rows) {
                prefetch(g.x + next * g.in, g.in);
                prefetch(g.y + next * g.out, g.out);
              }
              next++;
              pairs.take(x + row * g.in, y + row * g.out);
              if (pairs.count == PIECE) pairs.add_to(total);
            }
            pairs.add_to(total);
          }
        }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < matrices * g.in; row++)
        for (int64_t o = 0; o < g.out; o++) {
          double total = 0;
          for (int64_t lane = 0; lane < lanes; lane++)
            total += partial[lane * numbers + row * width + o];
          g.result[row * g.out + o] = total;
        }
    } else {
      // Many or large matrices: each is one thread's, wherever its rows lie.
#pragma omp for schedule(dynamic)
      for (int64_t s = 0; s < matrices; s++) {
        T *total = memory;
        std::fill_n(total, matrix, T(0));
        for (int64_t sample = 0; sample < g.batch; sample++)
          for (int64_t p = g.pointers[s]; p < g.pointers[s + 1]; p++) {
            int64_t row = sample * g.rows + g.order[p];
            pairs.take(g.x + row * g.in, g.y + row * g.out);
            if (pairs.count == PIECE) pairs.add_to(total);
          }
        pairs.add_to(total);
        for (int64_t i = 0; i < g.in; i++)
          std::copy_n(total + i * width, g.out, g.result + (s * g.in + i) * g.out);
      }
    }
  }
}

} // namespace
} // namespace gsym

#define GSYM_REDUCTION(T, I, NAME, WORK)                                                           \
  extern "C" int gsym_##NAME(const gsym::Reduction<T, I> *g) {                                     \
    return gsym::answer(gsym::spans(g->pointers, g->segments, g->entries), [&] { gsym::WORK(*g); }); \
  }

#define GSYM_ROWS(T, I, NAME)                                                                      \
  GSYM_REDUCTION(T, I, segment_sum_##NAME, sum_rows)                                               \
  GSYM_REDUCTION(T, I, segment_max_##NAME, reduce<gsym::MAXIMUM>)                                  \
  GSYM_REDUCTION(T, I, tie_count_##NAME, reduce<gsym::TIES>)                                       \
  GSYM_REDUCTION(T, I, tie_spread_##NAME, spread_ties)                                             \
  GSYM_REDUCTION(T, I, gather_dot_##NAME, dot_rows)                                                \
  extern "C" int gsym_indexed_linear_##NAME(const gsym::Product<T, I> *g) {                        \
    return gsym::answer([&] { gsym::multiply(*g); });                                              \
  }                                                                                                \
  extern "C" int gsym_indexed_outer_##NAME(const gsym::Product<T, I> *g) {                         \
    return gsym::answer(gsym::spans(g->pointers, g->segments, g->rows),                            \
                        [&] { gsym::multiply_outer(*g); });                                        \
  }

GSYM_ROWS(float, int32_t, float32_int32)
GSYM_ROWS(float, int64_t, float32_int64)
GSYM_ROWS(double, int32_t, float64_int32)
GSYM_ROWS(double, int64_t, float64_int64)
