// The equivariant map of pairs to pairs on every subgraph:
// gsym.kernels.reference.subgraph_linear from order 2 to 2, with its gradient.
//
// A thread takes some whole subgraphs at a time, whose pairs stay in its second cache: it reduces
// them to nodes, mixes channels there, and returns to the pairs. So memory is read and written once.
// What it takes depends on nothing but sizes, and what several give to one weight is added in their
// order: neither the threads nor their number change a bit.
#include <numeric>

#include "call.h"
#include "vector.h"

namespace gsym {
namespace {

// Bytes of pairs that are taken at a time, and rows that are multiplied by their outer products.
constexpr int64_t BLOCK_BYTES = 1 << 18, ROWS = 48;
// Pairs that are added one after another: the rounding error of a running sum grows with its length.
constexpr int64_t PIECE = 4096;
// Sums of gradients that are kept apart before they are added up.
constexpr int64_t LANE_BYTES = 1 << 25, MOST_LANES = 16;
// Bytes that no cache holds.
constexpr int64_t LARGE = 1 << 25;

// Mirrored in cpp/pairs.py.
template <typename T> struct Pairs {
  int64_t batch, nodes, pairs, subgraphs, colours, kinds, in, out, threads;
  const int32_t *row, *col, *swap;         // [pairs]; -1 for a pair that is there one way only
  const int32_t *colour, *kind;            // [nodes]: that of its subgraph and its own; [subgraphs]
  const int32_t *first_node, *first_pair;  // [subgraphs + 1]
  const T *x, *pair, *turned;              // [batch, pairs, in], [k q q, in, out] twice
  const T *node, *graph;      // [k q, (1 + 2q) in, (2q + 1) out], [k, (q + q q) in, q (q + 1) out]
  const T *bias, *loop_bias;  // [k q q, out], [k q, out], or both missing
};

template <typename T> inline void put_sum(T *to, const T *a, const T *b, int64_t count) {
  int64_t j = 0;
  for (; j + LANES<T> <= count; j += LANES<T>) at(to + j) = at(a + j) + at(b + j);
  for (; j < count; j++) to[j] = a[j] + b[j];
}

// Matrices [count, rows, columns] with zeros at the end of their rows, or turned as well.
template <typename T> struct Matrices {
  std::vector<T> memory;
  const T *data;
  int64_t width, size;
  Matrices(const T *x, int64_t count, int64_t rows, int64_t columns, bool turn)
      : data(x), width(padded<T>(turn ? rows : columns)), size((turn ? columns : rows) * width) {
    if (!turn && width == columns) return;
    memory.resize(count * size + LANES<T>);
    T *to = aligned(memory);
    data = to;
    for (int64_t t = 0; t < count; t++, x += rows * columns, to += size)
      for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
          to[turn ? j * width + i : i * width + j] = x[i * columns + j];
  }
  Matrices(const Matrices &) = delete;
  const T *operator[](int64_t t) const { return data + t * size; }
};

// Places of rows in the order of what they are multiplied by, and where each run of it ends.
struct Order {
  std::vector<int64_t> places, ends, values;
  std::vector<int64_t> counts;

  // Sorts `count` rows by value(row), which is one of `most`.
  template <typename Value> void sort(int64_t count, int64_t most, Value value) {
    places.resize(count), ends.clear(), values.clear();
    if (most == 1) {
      std::iota(places.begin(), places.end(), 0);
      if (count) ends.push_back(count), values.push_back(0);
      return;
    }
    counts.assign(most + 1, 0);
    for (int64_t i = 0; i < count; i++) counts[value(i) + 1]++;
    for (int64_t t = 0; t < most; t++) {
      if (counts[t + 1]) ends.push_back(counts[t] + counts[t + 1]), values.push_back(t);
      counts[t + 1] += counts[t];
    }
    for (int64_t i = 0; i < count; i++) places[counts[value(i)]++] = i;
  }
  // Runs work(value, first, end) for every run.
  template <typename Work> void runs(Work work) const {
    for (size_t i = 0, first = 0; i < ends.size(); first = ends[i++])
      work(values[i], int64_t(first), ends[i]);
  }
};

// Where the numbers of a node lie that stand for its row, its column and itself.
struct Layout {
  int64_t row, col, loop, width, stride;
};

// Some subgraphs of one sample.
template <typename T> struct Item {
  const Pairs<T> &g;
  int64_t begin, end;           // subgraphs
  int64_t node, nodes, pair, pairs;
  Order by_colour, by_kind, by_pair;
  std::vector<int64_t> node_at, graph_at;  // where a node and a subgraph lie among those sorted

  explicit Item(const Pairs<T> &g) : g(g) {}

  void take(int64_t first, int64_t last) {
    begin = first, end = last;
    node = g.first_node[begin], nodes = g.first_node[end] - node;
    pair = g.first_pair[begin], pairs = g.first_pair[end] - pair;
    int64_t q = g.colours;
    by_colour.sort(nodes, g.kinds * q, [&](int64_t i) { return g.colour[node + i]; });
    by_kind.sort(end - begin, g.kinds, [&](int64_t s) { return g.kind[begin + s]; });
    by_pair.sort(pairs, g.kinds * q * q, [&](int64_t p) { return matrix(pair + p); });
    node_at.resize(nodes), graph_at.resize(end - begin);
    for (int64_t i = 0; i < nodes; i++) node_at[by_colour.places[i]] = i;
    for (int64_t s = 0; s < end - begin; s++) graph_at[by_kind.places[s]] = s;
  }
  int64_t shade(int64_t i) const { return g.colours == 1 ? 0 : g.colour[i] % g.colours; }
  int64_t matrix(int64_t p) const {
    return g.colour[g.row[p]] * g.colours + shade(g.col[p]);
  }
  // The matrix of the pair the other way round.
  int64_t turned(int64_t t) const {
    int64_t q = g.colours, kind = t / (q * q), rest = t % (q * q);
    return kind * q * q + rest % q * q + rest / q;
  }
  // Runs work(subgraph, its place, size) and its nodes.
  template <typename Work> void each(Work work) const {
    for (int64_t s = begin; s < end; s++)
      work(s, graph_at[s - begin], std::max<int64_t>(g.first_node[s + 1] - g.first_node[s], 1));
  }

  // Sums of rows and columns by colour, and the pairs (i, i).
  void reduce(const T *x, int64_t width, const Layout &at, T *to) const {
    std::fill_n(to, nodes * at.stride, T(0));
    for (int64_t p = pair; p < pair + pairs; p++) {
      int64_t i = g.row[p], j = g.col[p];
      const T *from = x + p * width;
      T *mine = to + node_at[i - node] * at.stride, *other = to + node_at[j - node] * at.stride;
      add(mine + at.row + shade(j) * width, from, width);
      add(other + at.col + shade(i) * width, from, width);
      if (i == j) add(mine + at.loop, from, width);
    }
  }
  // What row, column and, of (i, i), the node itself give to a pair.
  void spread(const T *from, int64_t width, const Layout &at, int64_t p, T *to) const {
    int64_t i = g.row[p], j = g.col[p];
    const T *mine = from + node_at[i - node] * at.stride;
    const T *other = from + node_at[j - node] * at.stride;
    put_sum(to, mine + at.row + shade(j) * width, other + at.col + shade(i) * width, width);
    if (i == j) add(to, mine + at.loop, width);
  }
};

// Rows of sorted places times the matrix of their run, added to `c`.
template <typename T>
void multiply(const Order &order, const T *a, int64_t a_stride, int64_t count,
              const Matrices<T> &weight, T *c) {
  order.runs([&](int64_t t, int64_t first, int64_t end) {
    T *to = c + first * weight.width;
    product(end - first, a + first * a_stride, a_stride, count, weight[t], weight.width, to,
            weight.width, to);
  });
}

template <typename T> class Map {
  const Pairs<T> &g;
  const int64_t q, node_in, graph_in, node_out, graph_out;
  std::vector<int64_t> starts, work;  // subgraphs that every item begins with, and its pairs
  int64_t most_nodes = 0, most_graphs = 0;
  Layout inner, outer;                // of what nodes hold of x, and give to y

public:
  explicit Map(const Pairs<T> &g)
      : g(g), q(g.colours), node_in(1 + 2 * q), graph_in(q + q * q), node_out(2 * q + 1),
        graph_out(q * (q + 1)) {
    int64_t most = BLOCK_BYTES / (std::max<int64_t>(std::max(g.in, g.out), 1) * sizeof(T));
    for (int64_t s = 0, pairs = most; s < g.subgraphs; s++) {
      int64_t more = g.first_pair[s + 1] - g.first_pair[s] + 1;  // an empty one counts as well
      if (pairs + more > most) starts.push_back(s), work.push_back(pairs = 0);
      work.back() = pairs += more;
    }
    starts.push_back(g.subgraphs);
    for (int64_t i = 0; i < items(); i++) {
      int64_t nodes = g.first_node[starts[i + 1]] - g.first_node[starts[i]];
      most_nodes = std::max(most_nodes, nodes);
      most_graphs = std::max(most_graphs, starts[i + 1] - starts[i]);
    }
    int64_t c = g.in, d = g.out;
    inner = {c, c + q * c, 0, c, padded<T>(node_in * c)};
    outer = {0, q * d, 2 * q * d, d, padded<T>(node_out * d)};
  }
  int64_t items() const { return starts.size() - 1; }

  void forward(T *y) const {
    int64_t c = g.in, d = g.out, count = items();
    Matrices<T> pair(g.pair, g.kinds * q * q, c, d, false);
    Matrices<T> turned(g.turned, g.kinds * q * q, c, d, false);
    Matrices<T> node(g.node, g.kinds * q, node_in * c, node_out * d, false);
    Matrices<T> graph(g.graph, g.kinds, graph_in * c, graph_out * d, false);
    int64_t width = pair.width, rows = tile_rows<T>(width);
    bool passing = width == d && reinterpret_cast<uintptr_t>(y) % VECTOR_BYTES == 0 &&
                   g.batch * g.pairs * d * int64_t(sizeof(T)) > LARGE;
    std::vector<T> nothing(c);
#pragma omp parallel num_threads(g.threads)
    {
      Item<T> item(g);
      T *nodes = scratch<T>(most_nodes * (inner.stride + node.width) +
                            most_graphs * (padded<T>(graph_in * c) + graph.width) +
                            MOST_ROWS * width);
      T *given = nodes + most_nodes * inner.stride, *tile = given + most_nodes * node.width;
      T *graphs = tile + MOST_ROWS * width, *shared = graphs + most_graphs * padded<T>(graph_in * c);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < g.batch * count; i++) {
        item.take(starts[i % count], starts[i % count + 1]);
        const T *x = g.x + i / count * g.pairs * c;
        T *result = y + i / count * g.pairs * d;
        pool(item, x, nodes, graphs);
        std::fill_n(shared, (item.end - item.begin) * graph.width, T(0));
        multiply(item.by_kind, graphs, padded<T>(graph_in * c), graph_in * c, graph, shared);
        share(item, shared, graph.width, given);
        multiply(item.by_colour, nodes, inner.stride, node_in * c, node, given);
        item.by_pair.runs([&](int64_t t, int64_t first, int64_t end) {
          for (; first < end; first += rows) {
            int64_t some = std::min(rows, end - first);
            const T *left[MOST_ROWS], *other[MOST_ROWS], *init[MOST_ROWS];
            T *to[MOST_ROWS], *out[MOST_ROWS];
            for (int64_t r = 0; r < some; r++) {
              int64_t p = item.pair + item.by_pair.places[first + r], back = g.swap[p];
              left[r] = x + p * c;
              other[r] = back < 0 ? nothing.data() : x + back * c;
              init[r] = to[r] = tile + r * width;
              out[r] = width == d ? result + p * d : to[r];
              item.spread(given, d, outer, p, to[r]);
            }
            product_rows(some, left, 1, c, pair[t], width, init, to);
            if (passing)
              product_rows<T, true>(some, other, 1, c, turned[t], width, init, out);
            else
              product_rows(some, other, 1, c, turned[t], width, init, out);
            for (int64_t r = 0; width != d && r < some; r++)
              std::copy_n(to[r], d, result + (item.pair + item.by_pair.places[first + r]) * d);
          }
        });
        if (passing) settle();
      }
    }
  }

  // `weights` are the gradients of pair, turned, node, graph, bias and loop_bias, one after another.
  void backward(const T *grad, T *by_x, T *weights) const {
    int64_t c = g.in, d = g.out, count = items();
    Matrices<T> pair(g.pair, g.kinds * q * q, c, d, true);
    Matrices<T> turned(g.turned, g.kinds * q * q, c, d, true);
    Matrices<T> node(g.node, g.kinds * q, node_in * c, node_out * d, true);
    Matrices<T> graph(g.graph, g.kinds, graph_in * c, graph_out * d, true);
    int64_t width = padded<T>(d), wide = pair.width, rows = tile_rows<T>(wide);
    int64_t shared_width = padded<T>(graph_out * d);
    // Sums of gradients: of both matrices of pairs together, of nodes, of graphs, and biases.
    int64_t pair_size = 2 * c * width, node_size = node_in * c * outer.stride;
    int64_t graph_size = graph_in * c * shared_width;
    int64_t node_at = g.kinds * q * q * pair_size, graph_at = node_at + g.kinds * q * node_size;
    int64_t bias_at = graph_at + g.kinds * graph_size, loop_at = bias_at + g.kinds * q * q * d;
    int64_t numbers = padded<T>(loop_at + g.kinds * q * d);
    std::vector<int64_t> cuts = lanes(numbers);
    int64_t many = cuts.size() - 1;
    static thread_local std::vector<double> kept;
    if (int64_t(kept.size()) < many * numbers) kept.resize(many * numbers);
    double *lane_sums = kept.data();
    bool passing = wide == c && reinterpret_cast<uintptr_t>(by_x) % VECTOR_BYTES == 0 &&
                   g.batch * g.pairs * c * int64_t(sizeof(T)) > LARGE;
    std::vector<T> nothing(std::max(c, d));
#pragma omp parallel num_threads(g.threads)
    {
      Item<T> item(g);
      int64_t graphs_width = padded<T>(graph_in * c), nodes_width = padded<T>(node_in * c);
      T *sums = scratch<T>(numbers + most_nodes * (inner.stride + outer.stride + nodes_width) +
                           most_graphs * (2 * graphs_width + shared_width) +
                           ROWS * (padded<T>(2 * c) + width) + MOST_ROWS * wide);
      T *nodes = sums + numbers, *given = nodes + most_nodes * inner.stride;
      T *by_nodes = given + most_nodes * outer.stride, *graphs = by_nodes + most_nodes * nodes_width;
      T *by_graphs = graphs + most_graphs * graphs_width;
      T *shared = by_graphs + most_graphs * graphs_width;
      T *left_rows = shared + most_graphs * shared_width;
      T *right_rows = left_rows + ROWS * padded<T>(2 * c), *tile = right_rows + ROWS * width;
      std::fill_n(right_rows, ROWS * width, T(0));
#pragma omp for schedule(dynamic)
      for (int64_t lane = 0; lane < many; lane++) {
        double *total = lane_sums + lane * numbers;
        int64_t added = 0;
        std::fill_n(total, numbers, 0.0);
        std::fill_n(sums, numbers, T(0));
        auto flush = [&] {
          for (int64_t j = 0; j < numbers; j++) total[j] += sums[j];
          std::fill_n(sums, numbers, T(0));
          added = 0;
        };
        for (int64_t i = cuts[lane]; i < cuts[lane + 1]; i++) {
          item.take(starts[i % count], starts[i % count + 1]);
          const T *x = g.x + i / count * g.pairs * c, *dy = grad + i / count * g.pairs * d;
          T *dx = by_x + i / count * g.pairs * c;
          pool(item, x, nodes, graphs);
          item.reduce(dy, d, outer, given);
          gather(item, given, shared_width, shared, sums + bias_at, sums + loop_at);
          item.by_colour.runs([&](int64_t t, int64_t first, int64_t end) {
            add_outer(node_in * c, nodes + first * inner.stride, inner.stride, end - first,
                      given + first * outer.stride, outer.stride, sums + node_at + t * node_size);
          });
          item.by_kind.runs([&](int64_t t, int64_t first, int64_t end) {
            add_outer(graph_in * c, graphs + first * graphs_width, graphs_width, end - first,
                      shared + first * shared_width, shared_width, sums + graph_at + t * graph_size);
          });
          std::fill_n(by_graphs, (item.end - item.begin) * graph.width, T(0));
          multiply(item.by_kind, shared, shared_width, graph_out * d, graph, by_graphs);
          std::fill_n(by_nodes, item.nodes * node.width, T(0));
          multiply(item.by_colour, given, outer.stride, node_out * d, node, by_nodes);
          unpool(item, by_graphs, by_nodes);
          item.by_pair.runs([&](int64_t t, int64_t first, int64_t end) {
            int64_t back_t = item.turned(t);
            for (int64_t start = first; start < end; start += rows) {
              int64_t some = std::min(rows, end - start);
              const T *left[MOST_ROWS], *other[MOST_ROWS], *init[MOST_ROWS];
              T *to[MOST_ROWS], *out[MOST_ROWS];
              for (int64_t r = 0; r < some; r++) {
                int64_t p = item.pair + item.by_pair.places[start + r], back = g.swap[p];
                left[r] = dy + p * d;
                other[r] = back < 0 ? nothing.data() : dy + back * d;
                init[r] = to[r] = tile + r * wide;
                out[r] = wide == c ? dx + p * c : to[r];
                item.spread(by_nodes, c, inner, p, to[r]);
              }
              product_rows(some, left, 1, d, pair[t], wide, init, to);
              if (passing)
                product_rows<T, true>(some, other, 1, d, turned[back_t], wide, init, out);
              else
                product_rows(some, other, 1, d, turned[back_t], wide, init, out);
              for (int64_t r = 0; wide != c && r < some; r++)
                std::copy_n(to[r], c, dx + (item.pair + item.by_pair.places[start + r]) * c);
            }
            for (int64_t start = first; start < end; start += ROWS) {
              int64_t some = std::min(ROWS, end - start);
              for (int64_t r = 0; r < some; r++) {
                int64_t p = item.pair + item.by_pair.places[start + r], back = g.swap[p];
                std::copy_n(x + p * c, c, left_rows + r * 2 * c);
                std::copy_n(back < 0 ? nothing.data() : x + back * c, c, left_rows + r * 2 * c + c);
                std::copy_n(dy + p * d, d, right_rows + r * width);
              }
              add_outer(2 * c, left_rows, 2 * c, some, right_rows, width, sums + t * pair_size);
            }
          });
          if (passing) settle();
          added += item.pairs;
          if (added >= PIECE) flush();
        }
        flush();
      }
      // What every matrix has of all lanes, without the ends of its rows.
      auto collect = [&](int64_t from, int64_t stride, int64_t columns, T *to, int64_t row) {
        for (int64_t j = 0; j < columns; j++) {
          double sum = 0;
          for (int64_t lane = 0; lane < many; lane++)
            sum += lane_sums[lane * numbers + from + row * stride + j];
          to[row * columns + j] = sum;
        }
      };
      int64_t matrices = g.kinds * q * q;
      T *by_turned = weights + matrices * c * d, *by_node = by_turned + matrices * c * d;
      T *by_graph = by_node + g.kinds * q * node_in * c * node_out * d;
      T *by_bias = by_graph + g.kinds * graph_in * c * graph_out * d;
#pragma omp for schedule(static)
      for (int64_t row = 0; row < matrices * 2 * c; row++) {
        int64_t t = row / (2 * c), half = row / c % 2;
        collect(t * pair_size + half * c * width, width, d,
                (half ? by_turned : weights) + t * c * d, row % c);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < g.kinds * q * node_in * c; row++)
        collect(node_at, outer.stride, node_out * d, by_node, row);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < g.kinds * graph_in * c; row++)
        collect(graph_at, shared_width, graph_out * d, by_graph, row);
#pragma omp single
      if (g.bias) collect(bias_at, 0, g.kinds * q * q * d + g.kinds * q * d, by_bias, 0);
    }
  }

private:
  // Means of rows and columns and the diagonal by node; trace and total by subgraph.
  void pool(const Item<T> &item, const T *x, T *nodes, T *graphs) const {
    int64_t c = g.in, stride = padded<T>(graph_in * c);
    item.reduce(x, c, inner, nodes);
    std::fill_n(graphs, (item.end - item.begin) * stride, T(0));
    item.each([&](int64_t s, int64_t place, int64_t size) {
      T *mine = graphs + place * stride, part = T(1) / size;
      for (int64_t i = g.first_node[s]; i < g.first_node[s + 1]; i++) {
        T *from = nodes + item.node_at[i - item.node] * inner.stride;
        int64_t a = item.shade(i);
        for (int64_t j = inner.row; j < inner.row + 2 * q * c; j++) from[j] *= part;
        add_scaled(mine + a * c, from + inner.loop, part, c);
        add_scaled(mine + (q + a * q) * c, from + inner.row, part, q * c);
      }
    });
  }
  // The gradient of the same: from means to sums.
  void unpool(const Item<T> &item, const T *graphs, T *nodes) const {
    int64_t c = g.in, stride = padded<T>(graph_in * c);
    item.each([&](int64_t s, int64_t place, int64_t size) {
      const T *mine = graphs + place * stride;
      T part = T(1) / size;
      for (int64_t i = g.first_node[s]; i < g.first_node[s + 1]; i++) {
        T *to = nodes + item.node_at[i - item.node] * inner.stride;
        int64_t a = item.shade(i);
        add_scaled(to + inner.row, mine + (q + a * q) * c, part, q * c);
        for (int64_t j = inner.row; j < inner.row + 2 * q * c; j++) to[j] *= part;
        add_scaled(to + inner.loop, mine + a * c, part, c);
      }
    });
  }
  // What a subgraph and the biases give to its nodes.
  void share(const Item<T> &item, const T *shared, int64_t stride, T *nodes) const {
    int64_t d = g.out;
    std::fill_n(nodes, item.nodes * outer.stride, T(0));
    item.each([&](int64_t s, int64_t place, int64_t) {
      for (int64_t i = g.first_node[s]; i < g.first_node[s + 1]; i++) {
        T *to = nodes + item.node_at[i - item.node] * outer.stride;
        const T *from = shared + place * stride + item.shade(i) * (q + 1) * d;
        add(to + outer.row, from, q * d);
        add(to + outer.loop, from + q * d, d);
        if (!g.bias) continue;
        add(to + outer.row, g.bias + g.colour[i] * q * d, q * d);
        add(to + outer.loop, g.loop_bias + g.colour[i] * d, d);
      }
    });
  }
  // The gradient of the same.
  void gather(const Item<T> &item, const T *nodes, int64_t stride, T *shared, T *by_bias,
              T *by_loop_bias) const {
    int64_t d = g.out;
    std::fill_n(shared, (item.end - item.begin) * stride, T(0));
    item.each([&](int64_t s, int64_t place, int64_t) {
      for (int64_t i = g.first_node[s]; i < g.first_node[s + 1]; i++) {
        const T *from = nodes + item.node_at[i - item.node] * outer.stride;
        T *to = shared + place * stride + item.shade(i) * (q + 1) * d;
        add(to, from + outer.row, q * d);
        add(to + q * d, from + outer.loop, d);
        if (!g.bias) continue;
        add(by_bias + g.colour[i] * q * d, from + outer.row, q * d);
        add(by_loop_bias + g.colour[i] * d, from + outer.loop, d);
      }
    });
  }
  // Runs of items of all samples of about the same work.
  std::vector<int64_t> lanes(int64_t numbers) const {
    int64_t total = g.batch * std::accumulate(work.begin(), work.end(), int64_t(0)), sum = 0;
    int64_t many = std::min(MOST_LANES, LANE_BYTES / (numbers * int64_t(sizeof(double))));
    many = std::max<int64_t>(std::min(many, total / PIECE), 1);
    std::vector<int64_t> cuts{0};
    for (int64_t i = 0; i < g.batch * items(); i++) {
      sum += work[i % items()];
      if (sum * many >= total * int64_t(cuts.size()) && int64_t(cuts.size()) < many)
        cuts.push_back(i + 1);
    }
    cuts.push_back(g.batch * items());
    return cuts;
  }
};

} // namespace
} // namespace gsym

#define GSYM_PAIRS(T, NAME)                                                                        \
  extern "C" int gsym_pairs_forward_##NAME(const gsym::Pairs<T> *g, T *const *results) {           \
    return gsym::answer([&] { gsym::Map<T>(*g).forward(results[0]); });                            \
  }                                                                                                \
  extern "C" int gsym_pairs_backward_##NAME(const gsym::Pairs<T> *g, T *const *given) {            \
    return gsym::answer([&] { gsym::Map<T>(*g).backward(given[0], given[1], given[2]); });         \
  }

GSYM_PAIRS(float, float32)
GSYM_PAIRS(double, float64)
