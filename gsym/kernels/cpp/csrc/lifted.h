// Ego-networks in compiled loops: their tables, and memory between steps.
#pragma once

#include <memory>
#include <type_traits>

#include "vector.h"

namespace gsym {

// Entries, nodes or pairs that are taken at a time.
constexpr int64_t BLOCK = 48;
// Bytes that a thread keeps from call to call.
constexpr int64_t KEPT = 1 << 25;

// Maps of what pairs or nodes hold, to pairs and nodes.
template <typename T> struct Half {
  const T *x;                                         // [pairs or nodes, in]
  const T *node, *graph, *bias, *loop_bias;           // to pairs: [3 in or in, 3 out], [2 in or in,
                                                      // 2 out], [out] twice
  const T *to_node, *graph_to_node, *node_bias;       // to nodes: [.., out] twice, [out]
};

// Mirrored in gsym/kernels/cpp/lifted.py.
template <typename T> struct Lifted {
  int64_t nodes, pairs, entries, subgraphs, places, in, beside, out, threads;
  const int32_t *first, *second, *swap;         // [pairs], sorted by first node, then by second
  const int32_t *loop, *by_first;               // [nodes]: the pair (i, i) or -1; [nodes + 1]
  const int32_t *first_entry, *first_place;     // [subgraphs + 1]
  const int32_t *node, *owner, *place;          // [entries], [entries], [places]: a node, a
                                                // subgraph, a pair
  const int32_t *by_node, *of_node;             // [nodes + 1], [entries]: entries of every node
  const int32_t *by_pair, *at_row, *at_column;  // [pairs + 1], [places] twice: entries of every pair
  const T *pair, *turned;                       // [in, out] twice
  Half<T> pairs_half, nodes_half;               // the latter is missing where `beside` is 0
};

// Memory for what lies between two steps; that of small batches is kept, since fresh pages cost
// faults.
template <typename T> class Workspace {
  std::unique_ptr<T[]> own;
  T *next;

public:
  explicit Workspace(int64_t count) {
    static thread_local std::vector<T> kept;
    if (count * int64_t(sizeof(T)) > KEPT)
      own.reset(new T[count]), next = own.get();
    else if (int64_t(kept.size()) < count)
      kept.resize(count), next = kept.data();
    else
      next = kept.data();
  }
  T *take(int64_t count) {
    T *here = next;
    next += count;
    return here;
  }
};

// Runs work(vectors, channel) for groups of whole vectors, and answers where the rest begins.
template <typename T, typename Work> inline int64_t by_vectors(int64_t count, Work work) {
  int64_t j = 0;
  for (; count - j >= 4 * LANES<T>; j += 4 * LANES<T>) work(std::integral_constant<int, 4>(), j);
  for (; count - j >= 2 * LANES<T>; j += 2 * LANES<T>) work(std::integral_constant<int, 2>(), j);
  for (; count - j >= LANES<T>; j += LANES<T>) work(std::integral_constant<int, 1>(), j);
  return j;
}

// A matrix put together from parts of others; rows may be turned, and have zeros at their ends.
template <typename T> struct Packed {
  std::vector<T> memory;
  T *data;
  int64_t width;
  Packed(int64_t rows, int64_t width)
      : memory(rows * width + LANES<T>), data(aligned(memory)), width(width) {}
  Packed(const Packed &) = delete;
  void put(const T *from, int64_t stride, int64_t rows, int64_t columns, int64_t row,
           int64_t column) {
    for (int64_t i = 0; i < rows; i++)
      std::copy_n(from + i * stride, columns, data + (row + i) * width + column);
  }
  void turn(const T *from, int64_t stride, int64_t rows, int64_t columns, int64_t row,
            int64_t column) {
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++)
        data[(row + j) * width + column + i] = from[i * stride + j];
  }
};

// Consecutive items in blocks of at least so many rows.
struct Blocks {
  std::vector<int64_t> starts{0};
  int64_t most = 0, longest = 0;  // items and rows of a block

  Blocks(int64_t count) {
    for (int64_t i = BLOCK; i < count; i += BLOCK) starts.push_back(i);
    starts.push_back(count);
    most = longest = std::min(BLOCK, count);
  }
  Blocks(int64_t count, const int32_t *first) {
    for (int64_t i = 1; i <= count; i++)
      if (i == count || first[i] - first[starts.back()] >= BLOCK || i - starts.back() >= BLOCK) {
        most = std::max(most, i - starts.back());
        longest = std::max<int64_t>(longest, first[i] - first[starts.back()]);
        starts.push_back(i);
      }
    if (starts.size() == 1) starts.push_back(0);
  }
  int64_t count() const { return starts.size() - 1; }
};

} // namespace gsym
