// Maps that all ego-networks share, averaged over those that hold a pair or a node:
// gsym.kernels.lifted composes the same. With its gradient.
//
// What a pair gives to itself and its reverse is the same in all subgraphs, so it is multiplied once.
// The rest is read from sums of rows and columns of every subgraph, multiplied there and averaged.
// Steps alternate between subgraphs, nodes and pairs, each in blocks that depend on nothing but
// sizes, and what several give to one weight is added in their order: neither the threads nor their
// number change a bit.
#include "call.h"
#include "lifted.h"

namespace gsym {
namespace {

// Rows that are added one after another: the rounding error of a running sum grows with its length.
constexpr int64_t PIECE = 4096;
// Sums of gradients that are kept apart before they are added up, and rows that each should have.
constexpr int64_t MOST_LANES = 16, LANE_ROWS = 512;
// Where its gradients go; a tensor may be missing.
template <typename T> struct Sums {
  T *x, *node, *graph, *bias, *loop_bias, *to_node, *graph_to_node, *node_bias;
};

template <typename T> struct Gradients {
  T *pair, *turned;
  Sums<T> pairs_half, nodes_half;
};

template <typename T> class Maps {
  const Lifted<T> &g;
  const int64_t c, e, d, wide, total;  // `total`: columns of a result
  const bool both;
  Blocks by_entries, by_nodes, by_pairs;

  // What nodes and subgraphs give: to row, column and (i, i), and to the node.
  Packed<T> node, graph, node_beside, graph_beside, entry;
  std::vector<T> start, start_beside;

public:
  explicit Maps(const Lifted<T> &g)
      : g(g), c(g.in), e(g.beside), d(g.out), wide(4 * g.out), total(g.beside ? 2 * g.out : g.out),
        both(g.beside), by_entries(g.subgraphs, g.first_entry), by_nodes(g.nodes),
        by_pairs(g.pairs), node(3 * c, wide), graph(2 * c, wide), node_beside(e, wide),
        graph_beside(e, wide), entry(2 * c, 2 * d), start(wide), start_beside(wide) {
    const Half<T> &p = g.pairs_half, &n = g.nodes_half;
    node.put(p.node, 3 * d, c, 3 * d, 0, 0);
    node.put(p.node + 3 * c * d + 2 * d, 3 * d, 2 * c, d, c, 2 * d);
    node.put(p.to_node, d, 3 * c, d, 0, 3 * d);
    entry.put(p.node + 3 * c * d, 3 * d, 2 * c, 2 * d, 0, 0);
    pack_graph(p, 2 * c, graph, start);
    if (!both) return;
    node_beside.put(n.node, 3 * d, e, 3 * d, 0, 0);
    node_beside.put(n.to_node, d, e, d, 0, 3 * d);
    pack_graph(n, e, graph_beside, start_beside);
  }

  void forward(T *pair, T *result) const {
    Workspace<T> work(g.entries * 2 * (c + d) + (g.subgraphs + g.nodes) * wide * (both ? 2 : 1));
    T *sums = work.take(g.entries * 2 * c), *ends = work.take(g.entries * 2 * d);
    T *shared = work.take(g.subgraphs * wide), *given = work.take(g.nodes * wide);
    T *shared_beside = both ? work.take(g.subgraphs * wide) : nullptr;
    T *given_beside = both ? work.take(g.nodes * wide) : nullptr;
    int64_t rows = tile_rows<T>(d);
#pragma omp parallel num_threads(g.threads)
    {
      T *mine = scratch<T>(wide + by_entries.most * (2 * c + e) + BLOCK * 3 * c + MOST_ROWS * d);
      T *zero = mine, *graphs = zero + wide, *means = graphs + by_entries.most * 2 * c;
      T *own = means + by_entries.most * e, *tile = own + BLOCK * 3 * c;
      std::fill_n(zero, wide, T(0));
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < by_entries.count(); i++) {
        int64_t begin = by_entries.starts[i], end = by_entries.starts[i + 1];
        pool(begin, end, sums, graphs, means);
        product(end - begin, graphs, 2 * c, 2 * c, graph.data, wide, zero, 0, shared + begin * wide);
        if (both)
          product(end - begin, means, e, e, graph_beside.data, wide, zero, 0,
                  shared_beside + begin * wide);
        spread_entries(begin, end, sums, shared, ends);
      }
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < by_nodes.count(); i++) {
        int64_t begin = by_nodes.starts[i], end = by_nodes.starts[i + 1];
        read_nodes(begin, end, sums, own);
        map_nodes(begin, end, own, 3 * c, node, start, shared, given, result);
        if (both)
          map_nodes(begin, end, g.nodes_half.x + begin * e, e, node_beside, start_beside,
                    shared_beside, given_beside, result + d);
      }
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < by_pairs.count(); i++)
        for (int64_t at = by_pairs.starts[i], stop = by_pairs.starts[i + 1]; at < stop; at += rows) {
          int64_t some = std::min(rows, stop - at);
          const T *left[MOST_ROWS], *other[MOST_ROWS], *init[MOST_ROWS];
          T *to[MOST_ROWS], *out[MOST_ROWS];
          for (int64_t r = 0; r < some; r++) {
            int64_t p = at + r;
            left[r] = g.pairs_half.x + p * c, other[r] = g.pairs_half.x + g.swap[p] * c;
            init[r] = to[r] = tile + r * d;
            out[r] = pair + p * total;
            from_nodes(p, given, wide, d, to[r], 2 * d);
            from_entries(p, ends, d, T(1) / times(p), to[r]);
            if (both) {
              from_nodes(p, given_beside, wide, d, out[r] + d, 2 * d);
              from_subgraphs(p, shared_beside, out[r] + d);
            }
          }
          product_rows(some, left, 1, c, g.pair, d, init, to);
          product_rows(some, other, 1, c, g.turned, d, init, out);
        }
    }
  }

  void backward(const T *by_pair, const T *by_result, const Gradients<T> &to) const {
    int64_t cp = padded<T>(c), ep = padded<T>(e), rows = tile_rows<T>(cp);
    bool down = to.pairs_half.x;  // whether anybody asks for the gradient of pairs
    Packed<T> node_back(wide, 3 * cp), graph_back(wide, 2 * cp), entry_back(2 * d, 2 * cp);
    Packed<T> node_beside_back(wide, ep), graph_beside_back(wide, ep);
    Packed<T> pair_back(d, cp), turned_back(d, cp);
    for (int64_t part = 0; part < 3; part++)
      node_back.turn(node.data + part * c * wide, wide, c, wide, 0, part * cp);
    for (int64_t part = 0; part < 2; part++) {
      graph_back.turn(graph.data + part * c * wide, wide, c, wide, 0, part * cp);
      entry_back.turn(entry.data + part * c * 2 * d, 2 * d, c, 2 * d, 0, part * cp);
    }
    node_beside_back.turn(node_beside.data, wide, e, wide, 0, 0);
    graph_beside_back.turn(graph_beside.data, wide, e, wide, 0, 0);
    pair_back.turn(g.pair, d, c, d, 0, 0), turned_back.turn(g.turned, d, c, d, 0, 0);

    int64_t graph_size = 2 * c * wide, node_size = (3 * c + 1) * wide;
    Lanes of_nodes(*this, by_nodes.count(), g.nodes, node_size + (both ? (e + 1) * wide : 0));
    Lanes of_entries(*this, by_entries.count(), g.entries,
                     2 * c * 2 * d + graph_size + (both ? e * wide : 0));
    Lanes of_pairs(*this, by_pairs.count(), g.pairs, 2 * c * d);

    Workspace<T> work(g.entries * 2 * (c + d + cp) + g.subgraphs * (2 * c + e + 2 * cp + ep) +
                      (g.subgraphs + g.nodes) * wide * 2 + g.nodes * (3 * cp + ep) +
                      3 * LANES<T>);
    T *sums = work.take(g.entries * 2 * c), *ends = work.take(g.entries * 2 * d);
    T *by_sums = work.take(g.entries * 2 * cp), *graphs = work.take(g.subgraphs * 2 * c);
    T *means = work.take(g.subgraphs * e), *by_graphs = work.take(g.subgraphs * 2 * cp);
    T *by_means = work.take(g.subgraphs * ep), *shared = work.take(g.subgraphs * wide);
    T *shared_beside = work.take(g.subgraphs * wide), *given = work.take(g.nodes * wide);
    T *given_beside = work.take(g.nodes * wide), *by_own = work.take(g.nodes * 3 * cp);
    T *by_beside = work.take(g.nodes * ep);
#pragma omp parallel num_threads(g.threads)
    {
      int64_t numbers = std::max({of_nodes.numbers, of_entries.numbers, of_pairs.numbers});
      int64_t widest = std::max(3 * cp, ep);
      T *zero = scratch<T>(widest + numbers + BLOCK * (3 * c + 2 * c + d) + MOST_ROWS * cp);
      T *added = zero + widest, *own = added + numbers;
      T *left_rows = own + BLOCK * 3 * c, *right_rows = left_rows + BLOCK * 2 * c;
      T *tile = right_rows + BLOCK * d;
      std::fill_n(zero, widest, T(0));
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < by_entries.count(); i++) {
        int64_t begin = by_entries.starts[i], end = by_entries.starts[i + 1];
        pool(begin, end, sums, graphs + begin * 2 * c, means + begin * e);
        collect_entries(begin, end, by_pair, ends, shared, shared_beside);
      }
#pragma omp for schedule(dynamic)
      for (int64_t lane = 0; lane < of_nodes.many; lane++)
        of_nodes.run(lane, added, [&](int64_t i) {
          int64_t begin = by_nodes.starts[i], end = by_nodes.starts[i + 1], count = end - begin;
          read_nodes(begin, end, sums, own);
          collect_nodes(begin, end, by_pair, by_result, 0, given);
          T *here = given + begin * wide;
          add_outer(3 * c, own, 3 * c, count, here, wide, added);
          for (int64_t r = 0; r < count; r++) add(added + 3 * c * wide, here + r * wide, wide);
          product(count, here, wide, wide, node_back.data, 3 * cp, zero, 0, by_own + begin * 3 * cp);
          if (!both) return count;
          collect_nodes(begin, end, by_pair, by_result, d, given_beside);
          here = given_beside + begin * wide;
          T *beside = added + node_size;
          add_outer(e, g.nodes_half.x + begin * e, e, count, here, wide, beside);
          for (int64_t r = 0; r < count; r++) add(beside + e * wide, here + r * wide, wide);
          product(count, here, wide, wide, node_beside_back.data, ep, zero, 0,
                  by_beside + begin * ep);
          return count;
        });
#pragma omp for schedule(dynamic)
      for (int64_t lane = 0; lane < of_entries.many; lane++)
        of_entries.run(lane, added, [&](int64_t i) {
          int64_t begin = by_entries.starts[i], end = by_entries.starts[i + 1];
          int64_t at = g.first_entry[begin], count = g.first_entry[end] - at;
          add_outer(2 * c, sums + at * 2 * c, 2 * c, count, ends + at * 2 * d, 2 * d, added);
          collect_graphs(begin, end, given, shared);
          T *here = shared + begin * wide, *more = added + 2 * c * 2 * d;
          add_outer(2 * c, graphs + begin * 2 * c, 2 * c, end - begin, here, wide, more);
          if (down) {
            product(end - begin, here, wide, wide, graph_back.data, 2 * cp, zero, 0,
                    by_graphs + begin * 2 * cp);
            product(count, ends + at * 2 * d, 2 * d, 2 * d, entry_back.data, 2 * cp, zero, 0,
                    by_sums + at * 2 * cp);
            unpool(begin, end, cp, by_graphs, by_own, by_sums);
          }
          if (!both) return count;
          collect_graphs(begin, end, given_beside, shared_beside);
          here = shared_beside + begin * wide;
          add_outer(e, means + begin * e, e, end - begin, here, wide, more + graph_size);
          product(end - begin, here, wide, wide, graph_beside_back.data, ep, zero, 0,
                  by_means + begin * ep);
          for (int64_t s = begin; s < end; s++)
            for (int64_t j = 0; j < ep; j++) by_means[s * ep + j] /= size(s);
          return count;
        });
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < by_nodes.count(); i++)
        for (int64_t n = by_nodes.starts[i]; n < by_nodes.starts[i + 1]; n++) {
          for (int64_t q = g.by_node[n]; q < g.by_node[n + 1]; q++) {
            int64_t s = g.owner[g.of_node[q]];
            if (down) add(by_own + n * 3 * cp, by_graphs + s * 2 * cp, cp);
            if (both) add(by_beside + n * ep, by_means + s * ep, ep);
          }
          if (both && to.nodes_half.x) std::copy_n(by_beside + n * ep, e, to.nodes_half.x + n * e);
        }
#pragma omp for schedule(dynamic)
      for (int64_t lane = 0; lane < of_pairs.many; lane++)
        of_pairs.run(lane, added, [&](int64_t i) {
          int64_t begin = by_pairs.starts[i], count = by_pairs.starts[i + 1] - begin;
          for (int64_t r = 0; r < count; r++) {
            int64_t p = begin + r;
            std::copy_n(g.pairs_half.x + p * c, c, left_rows + r * 2 * c);
            std::copy_n(g.pairs_half.x + g.swap[p] * c, c, left_rows + r * 2 * c + c);
            std::copy_n(by_pair + p * total, d, right_rows + r * d);
          }
          add_outer(2 * c, left_rows, 2 * c, count, right_rows, d, added);
          for (int64_t at = 0; down && at < count; at += rows) {
            int64_t some = std::min(rows, count - at);
            const T *left[MOST_ROWS], *other[MOST_ROWS], *init[MOST_ROWS];
            T *out[MOST_ROWS], *result[MOST_ROWS];
            for (int64_t r = 0; r < some; r++) {
              int64_t p = begin + at + r;
              left[r] = right_rows + (at + r) * d, other[r] = by_pair + g.swap[p] * total;
              init[r] = out[r] = tile + r * cp;
              result[r] = cp == c ? to.pairs_half.x + p * c : out[r];
              std::fill_n(out[r], cp, T(0));
              if (g.first[p] == g.second[p]) add(out[r], by_own + g.first[p] * 3 * cp, cp);
              from_entries(p, by_sums, cp, T(1), out[r]);
            }
            product_rows(some, left, 1, d, pair_back.data, cp, init, out);
            product_rows(some, other, 1, d, turned_back.data, cp, init, result);
            for (int64_t r = 0; cp != c && r < some; r++)
              std::copy_n(out[r], c, to.pairs_half.x + (begin + at + r) * c);
          }
          return count;
        });
    }
    const Sums<T> &p = to.pairs_half, &n = to.nodes_half;
    of_pairs.give(0, d, c, d, to.pair, d), of_pairs.give(c * d, d, c, d, to.turned, d);
    give_nodes(of_nodes, 0, 3 * c, c, p);
    of_entries.give(0, 2 * d, 2 * c, 2 * d, p.node + 3 * c * d, 3 * d);
    give_graphs(of_entries, 2 * c * 2 * d, 2 * c, p);
    if (!both) return;
    give_nodes(of_nodes, node_size, e, e, n);
    give_graphs(of_entries, 2 * c * 2 * d + graph_size, e, n);
  }

private:
  // Sums over runs of blocks, each for itself, which are added up at the end.
  struct Lanes {
    const int64_t numbers, many, blocks;
    std::vector<double> totals;
    Lanes(const Maps &, int64_t blocks, int64_t rows, int64_t numbers)
        : numbers(numbers), many(std::clamp<int64_t>(rows / LANE_ROWS, 1, MOST_LANES)),
          blocks(blocks), totals(many * numbers) {}
    // Runs work(block), which answers how many rows it has added to `sums`.
    template <typename Work> void run(int64_t lane, T *sums, Work work) {
      double *total = &totals[lane * numbers];
      std::fill_n(sums, numbers, T(0));
      int64_t first = lane * blocks / many, last = (lane + 1) * blocks / many;
      for (int64_t i = first, added = 0; i < last; i++) {
        added += work(i);
        if (added < PIECE && i + 1 < last) continue;
        for (int64_t j = 0; j < numbers; j++) total[j] += sums[j];
        std::fill_n(sums, numbers, T(0));
        added = 0;
      }
    }
    // Part of the sums as a matrix.
    void give(int64_t from, int64_t stride, int64_t rows, int64_t columns, T *to,
              int64_t to_stride) const {
      for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
          double sum = 0;
          for (int64_t lane = 0; lane < many; lane++)
            sum += totals[lane * numbers + from + i * stride + j];
          to[i * to_stride + j] = sum;
        }
    }
  };

  void pack_graph(const Half<T> &half, int64_t rows, Packed<T> &packed, std::vector<T> &biases) {
    packed.put(half.graph, 2 * d, rows, d, 0, 0);
    packed.put(half.graph + d, 2 * d, rows, d, 0, 2 * d);
    packed.put(half.graph_to_node, d, rows, d, 0, 3 * d);
    std::copy_n(half.bias, d, biases.data());
    std::copy_n(half.loop_bias, d, biases.data() + 2 * d);
    std::copy_n(half.node_bias, d, biases.data() + 3 * d);
  }
  // Of nodes [rows, wide] and, behind them, of biases; only the first `direct` rows give to pairs
  // by row and column.
  void give_nodes(const Lanes &lanes, int64_t from, int64_t rows, int64_t direct,
                  const Sums<T> &to) const {
    lanes.give(from, wide, direct, 2 * d, to.node, 3 * d);
    lanes.give(from + 2 * d, wide, rows, d, to.node + 2 * d, 3 * d);
    lanes.give(from + 3 * d, wide, rows, d, to.to_node, d);
    int64_t biases = from + rows * wide;
    lanes.give(biases, wide, 1, d, to.bias, d);
    lanes.give(biases + 2 * d, wide, 1, d, to.loop_bias, d);
    lanes.give(biases + 3 * d, wide, 1, d, to.node_bias, d);
  }
  void give_graphs(const Lanes &lanes, int64_t from, int64_t rows, const Sums<T> &to) const {
    lanes.give(from, wide, rows, d, to.graph, 2 * d);
    lanes.give(from + 2 * d, wide, rows, d, to.graph + d, 2 * d);
    lanes.give(from + 3 * d, wide, rows, d, to.graph_to_node, d);
  }

  T size(int64_t s) const { return std::max(g.first_entry[s + 1] - g.first_entry[s], 1); }
  // Subgraphs that hold a node, and a pair.
  T held(int64_t n) const { return std::max(g.by_node[n + 1] - g.by_node[n], 1); }
  T times(int64_t p) const { return g.by_pair[p + 1] - g.by_pair[p]; }

  // Means of rows and columns of every entry, trace and total of every subgraph, and its mean of
  // nodes.
  void pool(int64_t begin, int64_t end, T *sums, T *graphs, T *means) const {
    const T *x = g.pairs_half.x;
    for (int64_t s = begin; s < end; s++, graphs += 2 * c, means += e) {
      int64_t at = g.first_entry[s], m = g.first_entry[s + 1] - at;
      const int32_t *place = g.place + g.first_place[s];
      T *to = sums + at * 2 * c, part = T(1) / size(s);
      std::fill_n(to, m * 2 * c, T(0)), std::fill_n(graphs, 2 * c, T(0));
      for (int64_t a = 0; a < m; a++) {
        const int32_t *row = place + a * m;
        int64_t rest = by_vectors<T>(c, [&](auto vectors, int64_t j) {
          constexpr int V = decltype(vectors)::value;
          Vec<T> sum[V] = {};
          for (int64_t b = 0; b < m; b++)
            for (int v = 0; v < V; v++) {
              Vec<T> value = at_vector(x + row[b] * c + j, v);
              sum[v] += value;
              at_vector(to + b * 2 * c + c + j, v) += value;
            }
          for (int v = 0; v < V; v++) at_vector(to + a * 2 * c + j, v) = sum[v];
        });
        for (int64_t b = 0; rest < c && b < m; b++)
          for (int64_t j = rest; j < c; j++) {
            to[a * 2 * c + j] += x[row[b] * c + j];
            to[b * 2 * c + c + j] += x[row[b] * c + j];
          }
        add_scaled(graphs, x + row[a] * c, part, c);
      }
      for (int64_t j = 0; j < m * 2 * c; j++) to[j] *= part;
      for (int64_t a = 0; a < m; a++) add_scaled(graphs + c, to + a * 2 * c, part, c);
      if (!both) continue;
      std::fill_n(means, e, T(0));
      for (int64_t a = at; a < at + m; a++) add(means, g.nodes_half.x + g.node[a] * e, e);
      for (int64_t j = 0; j < e; j++) means[j] *= part;
    }
  }
  // The gradient of the same, as far as it goes to sums: from means to sums, and the trace, which
  // is one.
  void unpool(int64_t begin, int64_t end, int64_t cp, T *by_graphs, const T *by_own,
              T *by_sums) const {
    for (int64_t s = begin; s < end; s++) {
      T part = T(1) / size(s), *mine = by_graphs + s * 2 * cp;
      for (int64_t j = 0; j < 2 * cp; j++) mine[j] *= part;
      for (int64_t i = g.first_entry[s]; i < g.first_entry[s + 1]; i++) {
        T *to = by_sums + i * 2 * cp;
        add_scaled(to, by_own + g.node[i] * 3 * cp + cp, 1 / held(g.node[i]), 2 * cp);
        add(to, mine + cp, cp);
        for (int64_t j = 0; j < 2 * cp; j++) to[j] *= part;
      }
    }
  }
  // What rows and columns of subgraphs give to pairs.
  void spread_entries(int64_t begin, int64_t end, const T *sums, const T *shared, T *ends) const {
    int64_t last = g.first_entry[end], rows = tile_rows<T>(2 * d);
    for (int64_t at = g.first_entry[begin]; at < last; at += rows) {
      int64_t some = std::min(rows, last - at);
      const T *left[MOST_ROWS], *init[MOST_ROWS];
      T *to[MOST_ROWS];
      for (int64_t r = 0; r < some; r++) {
        left[r] = sums + (at + r) * 2 * c;
        init[r] = shared + g.owner[at + r] * wide;
        to[r] = ends + (at + r) * 2 * d;
      }
      product_rows(some, left, 1, 2 * c, entry.data, 2 * d, init, to);
    }
  }
  // Their gradient, and that of what subgraphs give to all their pairs.
  void collect_entries(int64_t begin, int64_t end, const T *grad, T *ends, T *shared,
                       T *shared_beside) const {
    for (int64_t s = begin; s < end; s++) {
      int64_t at = g.first_entry[s], m = g.first_entry[s + 1] - at;
      const int32_t *place = g.place + g.first_place[s];
      T *to = ends + at * 2 * d, *mine = shared + s * wide, *beside = shared_beside + s * wide;
      std::fill_n(to, m * 2 * d, T(0)), std::fill_n(mine, wide, T(0));
      if (both) std::fill_n(beside, wide, T(0));
      for (int64_t a = 0; a < m; a++) {
        const int32_t *row = place + a * m;
        by_vectors<T>(d, [&](auto vectors, int64_t j) {
          constexpr int V = decltype(vectors)::value;
          Vec<T> sum[V] = {}, other[V] = {};
          for (int64_t b = 0; b < m; b++) {
            const T *from = grad + row[b] * total + j;
            T share = T(1) / times(row[b]);
            for (int v = 0; v < V; v++) {
              Vec<T> value = at_vector(from, v) * share;
              sum[v] += value;
              at_vector(to + b * 2 * d + d + j, v) += value;
              if (both) other[v] += at_vector(from + d, v) * share;
            }
          }
          for (int v = 0; v < V; v++) {
            at_vector(to + a * 2 * d + j, v) = sum[v];
            at_vector(mine + j, v) += sum[v];
            if (both) at_vector(beside + j, v) += other[v];
          }
        });
      }
    }
  }
  // What nodes hold: the pair (i, i), and means over subgraphs of the means of rows and columns.
  void read_nodes(int64_t begin, int64_t end, const T *sums, T *own) const {
    for (int64_t n = begin; n < end; n++, own += 3 * c) {
      std::fill_n(own, 3 * c, T(0));
      if (g.loop[n] < 0) continue;
      std::copy_n(g.pairs_half.x + g.loop[n] * c, c, own);
      for (int64_t q = g.by_node[n]; q < g.by_node[n + 1]; q++)
        add(own + c, sums + g.of_node[q] * 2 * c, 2 * c);
      for (int64_t j = c; j < 3 * c; j++) own[j] /= held(n);
    }
  }
  // What they give to pairs, and their new values.
  void map_nodes(int64_t begin, int64_t end, const T *own, int64_t count, const Packed<T> &weight,
                 const std::vector<T> &biases, const T *shared, T *given, T *result) const {
    for (int64_t n = begin; n < end; n++) {
      T *to = given + n * wide;
      std::copy_n(biases.data(), wide, to);
      for (int64_t q = g.by_node[n]; q < g.by_node[n + 1]; q++)
        add_scaled(to + 2 * d, shared + g.owner[g.of_node[q]] * wide + 2 * d, 1 / held(n), 2 * d);
    }
    T *here = given + begin * wide;
    product(end - begin, own, count, count, weight.data, wide, here, wide, here);
    for (int64_t n = begin; n < end; n++)
      if (g.loop[n] < 0)
        std::fill_n(result + n * total, d, T(0));
      else
        std::copy_n(given + n * wide + 3 * d, d, result + n * total);
  }
  // Their gradient.
  void collect_nodes(int64_t begin, int64_t end, const T *by_pair, const T *by_result,
                     int64_t shift, T *given) const {
    by_pair += shift, by_result += shift;
    for (int64_t n = begin; n < end; n++) {
      T *to = given + n * wide;
      std::fill_n(to, wide, T(0));
      if (g.loop[n] < 0) continue;
      for (int64_t p = g.by_first[n]; p < g.by_first[n + 1]; p++) {
        add(to, by_pair + p * total, d);
        add(to + d, by_pair + g.swap[p] * total, d);
      }
      std::copy_n(by_pair + g.loop[n] * total, d, to + 2 * d);
      std::copy_n(by_result + n * total, d, to + 3 * d);
    }
  }
  // What subgraphs give to pairs (i, i) and to nodes comes back.
  void collect_graphs(int64_t begin, int64_t end, const T *given, T *shared) const {
    for (int64_t s = begin; s < end; s++)
      for (int64_t i = g.first_entry[s]; i < g.first_entry[s + 1]; i++)
        add_scaled(shared + s * wide + 2 * d, given + g.node[i] * wide + 2 * d,
                   1 / held(g.node[i]), 2 * d);
  }

  // What both nodes of a pair give to it.
  void from_nodes(int64_t p, const T *given, int64_t stride, int64_t width, T *to,
                  int64_t loop) const {
    const T *row = given + g.first[p] * stride, *column = given + g.second[p] * stride + width;
    for (int64_t j = 0; j < width; j += LANES<T>) at(to + j) = at(row + j) + at(column + j);
    if (g.first[p] == g.second[p]) add(to, row + loop, width);
  }
  // To `to` is added what all subgraphs that hold the pair give by its row and its column.
  void from_entries(int64_t p, const T *ends, int64_t width, T share, T *to) const {
    by_vectors<T>(width, [&](auto vectors, int64_t j) {
      constexpr int V = decltype(vectors)::value;
      Vec<T> sum[V] = {};
      for (int64_t q = g.by_pair[p]; q < g.by_pair[p + 1]; q++) {
        const T *row = ends + g.at_row[q] * 2 * width + j;
        const T *column = ends + g.at_column[q] * 2 * width + width + j;
        for (int v = 0; v < V; v++) sum[v] += at_vector(row, v) + at_vector(column, v);
      }
      for (int v = 0; v < V; v++) at_vector(to + j, v) += sum[v] * share;
    });
  }
  // The same of what they give to all their pairs.
  void from_subgraphs(int64_t p, const T *shared, T *to) const {
    T share = T(1) / times(p);
    by_vectors<T>(d, [&](auto vectors, int64_t j) {
      constexpr int V = decltype(vectors)::value;
      Vec<T> sum[V] = {};
      for (int64_t q = g.by_pair[p]; q < g.by_pair[p + 1]; q++)
        for (int v = 0; v < V; v++)
          sum[v] += at_vector(shared + g.owner[g.at_row[q]] * wide + j, v);
      for (int v = 0; v < V; v++) at_vector(to + j, v) += sum[v] * share;
    });
  }

  static Vec<T> &at_vector(T *x, int v) { return at(x + v * LANES<T>); }
  static const Vec<T> &at_vector(const T *x, int v) { return at(x + v * LANES<T>); }
};

} // namespace
} // namespace gsym

#define GSYM_LIFTED(T, NAME)                                                                       \
  extern "C" int gsym_lifted_forward_##NAME(const gsym::Lifted<T> *g, T *const *results) {         \
    return gsym::answer([&] { gsym::Maps<T>(*g).forward(results[0], results[1]); });               \
  }                                                                                                \
  extern "C" int gsym_lifted_backward_##NAME(const gsym::Lifted<T> *g, const T *const *grads,      \
                                             const gsym::Gradients<T> *results) {                  \
    return gsym::answer([&] { gsym::Maps<T>(*g).backward(grads[0], grads[1], *results); });        \
  }

GSYM_LIFTED(float, float32)
GSYM_LIFTED(double, float64)
