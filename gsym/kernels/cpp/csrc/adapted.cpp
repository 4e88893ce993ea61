// Rows times a matrix that is block diagonal in a basis adapted to a group, with the gradient; see
// gsym/kernels/adapted.py for the program that says what lies where.
//
// Rows of one home, which is an orbit of nodes, meet columns of the basis that live on it. Such
// columns of one block are a tile, so that a block falls into units from tile to tile. All entries
// of blocks from one home to another are made of the weights between them when they are needed:
// each weight is read once, and no block ever lies in memory as a whole.
//
// A home is one thread's, so neither the threads nor their number change a bit.
#include "call.h"
#include "vector.h"

namespace gsym {
namespace {

// Samples side by side where they are the columns of a product, and rows of an outer product that
// the first cache holds.
constexpr int64_t SAMPLES = 64;
// So many matrices are read where they lie; more are brought together row by row, because their
// rows lie powers of two apart, where a cache holds few.
constexpr size_t MOST_STREAMS = 12;

// Mirrored in gsym/kernels/cpp/adapted.py. Channels are whole vectors.
template <typename T> struct Adapted {
  int64_t batch, nodes, in, out, orbits, length, count, threads;
  const int64_t *program;  // [length]
  const T *numbers;        // [count]
  const T *x, *weight;     // [batch, nodes, in], [orbits, in, out]
  T *work;
};

// Mirrored in gsym/kernels/adapted.py.
struct Program {
  int64_t length, nodes, homes, tiles, units, orbits, factors, squares;
  int64_t most_entries, most_orbits, most_run, largest;
  // By home: its first node, and the first number of its part of the basis.
  const int64_t *first_node, *first_square;
  // By home, node after node, and column after column: where its tile begins for its row, and the
  // columns of the tile with its own among them.
  const int64_t *node, *place, *run, *within;
  const int64_t *start, *width, *rows;  // of tiles: first column, columns of a row, rows
  // By home of the result, then of the input.
  const int64_t *first_orbit, *orbit, *first_unit, *first_factor;
  // Of units: tiles, and whether they are the first to write there, in either order of homes.
  const int64_t *from, *to, *opens_to, *opens_from;

  explicit Program(const int64_t *p) {
    int64_t *sizes[] = {&length, &nodes, &homes, &tiles, &units, &orbits, &factors, &squares,
                        &most_entries, &most_orbits, &most_run, &largest};
    for (int64_t *size : sizes) *size = *p++;
    auto take = [&](const int64_t *&table, int64_t count) { table = p, p += count; };
    take(first_node, homes + 1), take(first_square, homes + 1);
    take(node, nodes), take(place, nodes), take(run, nodes), take(within, nodes);
    take(start, tiles), take(width, tiles), take(rows, tiles);
    int64_t pairs = homes * homes;
    take(first_orbit, pairs + 1), take(orbit, orbits);
    take(first_unit, pairs + 1), take(first_factor, pairs + 1);
    take(from, units), take(to, units), take(opens_to, units), take(opens_from, units);
  }
};

constexpr int64_t HEADER = 12;

// The parts of the numbers.
template <typename T> struct Numbers {
  const T *into, *back;       // the basis by home, column by column and node by node
  const T *factor, *turned;   // of weights in entries [entries, orbits] by pair of homes; turned
  Numbers(const Program &p, const T *x)
      : into(x), back(x + p.squares), factor(back + p.squares), turned(factor + p.factors) {}
};

template <typename T> inline void copy_row(const T *from, int64_t count, T *to) {
  for (int64_t j = 0; j < count; j += LANES<T>) at(to + j) = at(from + j);
}

// Rows of one sample into the basis, or from there; tiles are [rows, batch, width, c].
template <bool INTO, typename T>
void turn(const Program &p, const T *matrix, const T *from, int64_t sample, int64_t batch,
          int64_t c, const T *zero, T *gathered, T *to) {
  auto in_tile = [&](int64_t k) {
    return (p.place[k] * batch + sample * p.run[k] + p.within[k]) * c;
  };
  auto in_row = [&](int64_t k) { return (sample * p.nodes + p.node[k]) * c; };
  int most = tile_rows<T>(c);
  for (int64_t home = 0; home < p.homes; home++) {
    int64_t first = p.first_node[home], count = p.first_node[home + 1] - first;
    for (int64_t k = 0; k < count; k++)
      copy_row(from + (INTO ? in_row(first + k) : in_tile(first + k)), c, gathered + k * c);
    const T *own = matrix + p.first_square[home];
    for (int64_t i = 0; i < count; i += most) {
      int rows = std::min<int64_t>(most, count - i);
      const T *left[MOST_ROWS], *start[MOST_ROWS];
      T *target[MOST_ROWS];
      for (int r = 0; r < rows; r++) {
        left[r] = own + (i + r) * count;
        start[r] = zero;
        target[r] = to + (INTO ? in_tile(first + i + r) : in_row(first + i + r));
      }
      product_rows<T>(rows, left, 1, count, gathered, c, start, target);
    }
  }
}

// Matrices of one shape, each with the distance of its rows.
template <typename T> struct Matrices {
  std::vector<T *> first;
  std::vector<int64_t> stride;

  void clear() { first.clear(), stride.clear(); }
  void add(T *x, int64_t distance) { first.push_back(x), stride.push_back(distance); }
  bool are_whole(int64_t width) const {
    return std::all_of(stride.begin(), stride.end(), [&](int64_t s) { return s == width; });
  }
  void advance() {
    for (size_t i = 0; i < first.size(); i++) first[i] += stride[i];
  }
};

// to[r] = sum over k of factor[r, k] from[k], for R rows and V vectors.
template <typename T, int R, int V>
inline void combine_tile(const T *factor, int64_t count, const T *const *from, T *const *to,
                         int64_t column) {
  Vec<T> total[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) total[r][v] = Vec<T>{};
  for (int64_t k = 0; k < count; k++) {
    Vec<T> right[V];
    for (int v = 0; v < V; v++) right[v] = at(from[k] + column + v * LANES<T>);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) total[r][v] += factor[r * count + k] * right[v];
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) at(to[r] + column + v * LANES<T>) = total[r][v];
}

template <typename T, int V, int R = V < TILE_VECTORS ? MOST_ROWS : TILE_ROWS>
inline void combine_panel(int64_t rows, const T *factor, int64_t count, const T *const *from,
                          T *const *to, int64_t column) {
  if constexpr (R > 1)
    if (rows < R) return combine_panel<T, V, R - 1>(rows, factor, count, from, to, column);
  combine_tile<T, R, V>(factor, count, from, to, column);
}

template <typename T, int V>
inline void combine_column(int64_t targets, const T *factor, int64_t count, const T *const *from,
                           T *const *to, int64_t column) {
  constexpr int most = V < TILE_VECTORS ? MOST_ROWS : TILE_ROWS;
  for (int64_t first = 0; first < targets; first += most)
    combine_panel<T, V>(std::min<int64_t>(most, targets - first), factor + first * count, count,
                        from, to + first, column);
}

// Sums of matrices [rows, width]: to[e] = sum over k of factor[e, k] from[k]. What is given is used
// up; `packed` holds a row of every matrix that is read.
template <typename T>
void combine(int64_t rows, int64_t width, const T *factor, Matrices<const T> &from, Matrices<T> &to,
             const T *zero, T *packed) {
  int64_t count = from.first.size(), targets = to.first.size();
  bool packs = from.first.size() > MOST_STREAMS;
  if (!packs && from.are_whole(width) && to.are_whole(width)) width *= rows, rows = 1;
  int most = tile_rows<T>(width);
  for (; rows > 0; rows--, from.advance(), to.advance()) {
    if (packs) {
      for (int64_t k = 0; k < count; k++) copy_row(from.first[k], width, packed + k * width);
      for (int64_t e = 0; e < targets; e += most) {
        int tall = std::min<int64_t>(most, targets - e);
        const T *left[MOST_ROWS], *start[MOST_ROWS];
        for (int r = 0; r < tall; r++) left[r] = factor + (e + r) * count, start[r] = zero;
        product_rows<T>(tall, left, 1, count, packed, width, start, &to.first[e]);
      }
      continue;
    }
    const T *const *reads = from.first.data();
    T *const *writes = to.first.data();
    for (int64_t column = 0, vectors; column < width; column += vectors * LANES<T>) {
      int64_t left = (width - column) / LANES<T>;
      vectors = left >= TILE_VECTORS ? TILE_VECTORS : left >= 2 ? 2 : 1;
      if (vectors == TILE_VECTORS)
        combine_column<T, TILE_VECTORS>(targets, factor, count, reads, writes, column);
      else if (vectors == 2)
        combine_column<T, 2>(targets, factor, count, reads, writes, column);
      else
        combine_column<T, 1>(targets, factor, count, reads, writes, column);
    }
  }
}

// Asks for the weights between two homes, some at a time, while those of others are in use.
template <typename T> struct Ahead {
  static constexpr int64_t LINE = 64 / sizeof(T);
  const int64_t *orbit, *end;
  const T *weight;
  int64_t matrix, share, place = 0;

  Ahead(const Adapted<T> &g, const Program &p, int64_t pair, int64_t tiles)
      : orbit(p.orbit + p.first_orbit[pair]), end(p.orbit + p.first_orbit[pair + 1]),
        weight(g.weight), matrix(g.in * g.out),
        share((end - orbit) * matrix / std::max<int64_t>(tiles, 1) + LINE) {}
  void operator()() {
    for (int64_t left = share; left > 0 && orbit < end; left -= LINE) {
      __builtin_prefetch(weight + *orbit * matrix + place, 0, 2);
      place += LINE;
      if (place >= matrix) place = 0, orbit++;
    }
  }
};

// What one thread needs: the entries between two homes, and rows.
template <typename T> struct Maker {
  const Adapted<T> &g;
  const Program &p;
  const Numbers<T> &numbers;
  T *zero, *gathered, *packed, *entries;
  Matrices<const T> read;
  Matrices<T> written;

  Maker(const Adapted<T> &g, const Program &p, const Numbers<T> &numbers)
      : g(g), p(p), numbers(numbers) {
    int64_t wide = std::max(g.in, g.out), none = std::max(p.most_run * wide, SAMPLES);
    int64_t kept = std::max(p.most_orbits, p.most_entries) * g.out;
    zero = scratch<T>(none + p.largest * wide + kept + p.most_entries * g.in * g.out);
    gathered = zero + none, packed = gathered + p.largest * wide, entries = packed + kept;
    std::fill_n(zero, none, T(0));
  }

  int64_t entries_of(int64_t pair) const {
    int64_t orbits = p.first_orbit[pair + 1] - p.first_orbit[pair];
    return (p.first_factor[pair + 1] - p.first_factor[pair]) / orbits;
  }

  // Calls work(unit, its matrix [width in, width out]) for all units between two homes.
  template <typename Work> void each_unit(int64_t pair, Work work) const {
    T *matrix = entries;
    for (int64_t unit = p.first_unit[pair]; unit < p.first_unit[pair + 1]; unit++) {
      work(unit, matrix);
      matrix += p.width[p.from[unit]] * g.in * p.width[p.to[unit]] * g.out;
    }
  }

  template <typename M> void list_entries(int64_t pair, M &list) const {
    list.clear();
    each_unit(pair, [&](int64_t unit, T *matrix) {
      int64_t wide = p.width[p.to[unit]];
      for (int64_t i = 0; i < p.width[p.from[unit]]; i++)
        for (int64_t o = 0; o < wide; o++)
          list.add(matrix + (i * g.in * wide + o) * g.out, wide * g.out);
    });
  }

  template <typename W, typename M> void list_weights(int64_t pair, W *weight, M &list) const {
    list.clear();
    for (int64_t k = p.first_orbit[pair]; k < p.first_orbit[pair + 1]; k++)
      list.add(weight + p.orbit[k] * g.in * g.out, g.out);
  }

  void make(int64_t pair) {
    list_weights(pair, g.weight, read);
    list_entries(pair, written);
    combine<T>(g.in, g.out, numbers.factor + p.first_factor[pair], read, written, zero, packed);
  }

  // The adjoint: gradients of weights from those of the entries.
  void gather(int64_t pair, T *by_weight) {
    list_entries(pair, read);
    list_weights(pair, by_weight, written);
    combine<T>(g.in, g.out, numbers.turned + p.first_factor[pair], read, written, zero, packed);
  }
};

template <typename T> void adapted_forward(const Adapted<T> &g, T *result) {
  const Program p(g.program);
  const Numbers<T> numbers(p, g.numbers);
  T *z = g.work, *y = z + p.nodes * g.batch * g.in;
#pragma omp parallel num_threads(g.threads)
  {
    Maker<T> maker(g, p, numbers);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < g.batch; b++)
      turn<true, T>(p, numbers.into, g.x, b, g.batch, g.in, maker.zero, maker.gathered, z);
#pragma omp for schedule(dynamic)
    for (int64_t home = 0; home < p.homes; home++)
      for (int64_t pair = home * p.homes; pair < (home + 1) * p.homes; pair++) {
        maker.make(pair);
        int64_t tiles = 0, next = std::min(pair + 1, p.homes * p.homes - 1);
        maker.each_unit(pair, [&](int64_t unit, const T *) {
          int64_t rows = p.rows[p.to[unit]] * g.batch, width = p.width[p.to[unit]] * g.out;
          tiles += rows / tile_rows<T>(width) + 1;
        });
        Ahead<T> ahead(g, p, next, tiles);
        maker.each_unit(pair, [&](int64_t unit, const T *matrix) {
          int64_t from = p.from[unit], to = p.to[unit], rows = p.rows[from] * g.batch;
          int64_t count = p.width[from] * g.in, width = p.width[to] * g.out;
          T *out = y + p.start[to] * g.batch * g.out;
          bool opens = p.opens_to[unit];
          product<T>(rows, z + p.start[from] * g.batch * g.in, count, count, matrix, width,
                     opens ? maker.zero : out, opens ? 0 : width, out, [&] { ahead(); });
        });
      }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < g.batch; b++)
      turn<false, T>(p, numbers.back, y, b, g.batch, g.out, maker.zero, maker.gathered, result);
  }
}

// Samples of a tile as the columns of matrices, `wide` of them side by side, or back to rows.
template <bool INTO, typename T>
void transpose(T *rows, int64_t count, int64_t batch, int64_t chunk, int64_t width, T *columns,
               int64_t wide) {
  for (int64_t r = 0; r < count; r++)
    for (int64_t first = 0; first < batch; first += chunk, columns += width * wide) {
      int64_t samples = std::min(chunk, batch - first);
      T *own = rows + (r * batch + first) * width;
      for (int64_t j = 0; j < width; j++) {
        T *to = columns + j * wide;
        for (int64_t b = 0; b < samples; b++)
          if constexpr (INTO) to[b] = own[b * width + j];
          else own[b * width + j] = to[b];
        if constexpr (INTO) std::fill(to + samples, to + wide, T(0));
      }
    }
}

// Either gradient may be missing.
template <typename T> void adapted_backward(const Adapted<T> &g, const T *grad, T *by_x, T *by_w) {
  const Program p(g.program);
  const Numbers<T> numbers(p, g.numbers);
  int64_t chunks = std::max<int64_t>((g.batch + SAMPLES - 1) / SAMPLES, 1);
  int64_t chunk = std::max<int64_t>((g.batch + chunks - 1) / chunks, 1), wide = padded<T>(chunk);
  chunks = (g.batch + chunk - 1) / chunk;
  T *z = g.work, *y = z + p.nodes * g.batch * g.in, *columns = y + p.nodes * g.batch * g.out;
  T *by_columns = columns + p.nodes * chunks * wide * g.out;
#pragma omp parallel num_threads(g.threads)
  {
    Maker<T> maker(g, p, numbers);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < g.batch; b++) {
      turn<true, T>(p, numbers.into, grad, b, g.batch, g.out, maker.zero, maker.gathered, y);
      if (by_w)
        turn<true, T>(p, numbers.into, g.x, b, g.batch, g.in, maker.zero, maker.gathered, z);
    }
    if (by_x) {
#pragma omp for schedule(dynamic)
      for (int64_t t = 0; t < p.tiles; t++)
        transpose<true, T>(y + p.start[t] * g.batch * g.out, p.rows[t], g.batch, chunk,
                           p.width[t] * g.out, columns + p.start[t] * chunks * wide * g.out, wide);
    }
#pragma omp for schedule(dynamic)
    for (int64_t home = 0; home < p.homes; home++)
      for (int64_t pair = home; pair < p.homes * p.homes; pair += p.homes) {
        if (by_x) {
          maker.make(pair);
          int64_t tiles = 0, next = pair + p.homes;
          if (next >= p.homes * p.homes) next = std::min(home + 1, p.homes - 1);
          maker.each_unit(pair, [&](int64_t unit, const T *) {
            int64_t tall = p.width[p.from[unit]] * g.in;
            tiles += p.rows[p.from[unit]] * chunks * (tall / tile_rows<T>(wide) + 1);
          });
          Ahead<T> ahead(g, p, next, tiles);
          maker.each_unit(pair, [&](int64_t unit, const T *matrix) {
            int64_t from = p.from[unit], to = p.to[unit];
            int64_t tall = p.width[from] * g.in, count = p.width[to] * g.out;
            bool opens = p.opens_from[unit];
            for (int64_t part = 0; part < p.rows[from] * chunks; part++) {
              T *out = by_columns + (p.start[from] * chunks * g.in + part * tall) * wide;
              const T *right = columns + (p.start[to] * chunks * g.out + part * count) * wide;
              product<T>(tall, matrix, count, count, right, wide, opens ? maker.zero : out,
                         opens ? 0 : wide, out, [&] { ahead(); });
            }
          });
        }
        if (!by_w) continue;
        std::fill_n(maker.entries, maker.entries_of(pair) * g.in * g.out, T(0));
        maker.each_unit(pair, [&](int64_t unit, T *matrix) {
          int64_t from = p.from[unit], to = p.to[unit], rows = p.rows[from] * g.batch;
          int64_t tall = p.width[from] * g.in, width = p.width[to] * g.out;
          const T *left = z + p.start[from] * g.batch * g.in;
          const T *right = y + p.start[to] * g.batch * g.out;
          for (int64_t first = 0; first < rows; first += SAMPLES)
            add_outer<T>(tall, left + first * tall, tall, std::min(SAMPLES, rows - first),
                         right + first * width, width, matrix);
        });
        maker.gather(pair, by_w);
      }
    if (by_x) {
#pragma omp for schedule(dynamic)
      for (int64_t t = 0; t < p.tiles; t++)
        transpose<false, T>(z + p.start[t] * g.batch * g.in, p.rows[t], g.batch, chunk,
                            p.width[t] * g.in, by_columns + p.start[t] * chunks * wide * g.in, wide);
#pragma omp for schedule(static)
      for (int64_t b = 0; b < g.batch; b++)
        turn<false, T>(p, numbers.back, z, b, g.batch, g.in, maker.zero, maker.gathered, by_x);
    }
  }
}

// Whether the program is one, and that of these tensors.
template <typename T> bool fits(const Adapted<T> &g) {
  if (g.length < HEADER || g.program[0] != g.length) return false;
  const Program p(g.program);
  int64_t count = 2 * (p.squares + p.factors);
  return p.opens_from + p.units == g.program + g.length && p.nodes == g.nodes &&
         p.orbits == g.orbits && count == g.count;
}

} // namespace
} // namespace gsym

#define GSYM_ADAPTED(T, NAME)                                                                      \
  extern "C" int gsym_adapted_forward_##NAME(const gsym::Adapted<T> *g, T *const *results) {       \
    return gsym::answer(gsym::fits(*g), [&] { gsym::adapted_forward(*g, results[0]); });           \
  }                                                                                                \
  extern "C" int gsym_adapted_backward_##NAME(const gsym::Adapted<T> *g, T *const *given) {        \
    return gsym::answer(gsym::fits(*g),                                                            \
                        [&] { gsym::adapted_backward(*g, given[0], given[1], given[2]); });        \
  }

GSYM_ADAPTED(float, float32)
GSYM_ADAPTED(double, float64)
