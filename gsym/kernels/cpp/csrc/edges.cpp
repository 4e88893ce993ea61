// The edge work of the EGNN family: gsym.kernels.reference.edge_mlp_sum and its gradient.
//
// Edges are sorted by receiver and taken in chunks, by any thread. What a chunk adds to the receiver
// that its first edge shares with the chunk before is carried and added at the end, in order, so
// that neither the threads nor their number change a bit of these sums.
#include "call.h"
#include "vector.h"

namespace gsym {

// Edges that go through the pipeline together: their rows stay in the second cache.
constexpr int64_t BLOCK = 96;
constexpr int64_t MOST_CHUNK = 16 * BLOCK;
// Edges whose gradients wait for being added to their senders.
constexpr int64_t WAVE_PER_THREAD = 8192, MOST_WAVE = 32768;

// Mirrored in cpp/edges.py. Widths are padded with zeros to whole vectors.
template <typename T, typename I> struct Edges {
  int64_t batch, nodes, senders, edges, hidden, width, dims, attributes, attr_stride, threads;
  int64_t normalize, tanh, clamped, mean;
  double clamp;
  const I *index, *columns, *pointers;           // [edges], [edges], [nodes + 1]
  const T *receiver, *sender;                    // [batch, nodes, width], [batch, senders, width]
  const T *pos, *distance;                       // [batch, nodes, dims], [width]
  const T *attr, *attr_weight;                   // [batch or 1, edges, a], [a, width]
  const T *weight, *bias, *gate, *gate_bias;     // [hidden, width], [width], [width], [1]
  const T *coord, *coord_bias, *coord_last;      // [hidden, width], [width], [width]
  // Where the forward pass leaves the arguments of the second and third activation, [batch, edges,
  // width], for the gradient; nowhere, and it computes them again.
  T *second, *third;

  // What an edge counts among the moves of its receiver.
  T share(int64_t node) const {
    return mean ? T(1) / std::max<T>(pointers[node + 1] - pointers[node], 1) : T(1);
  }
};

template <typename T> struct Sums {
  T *total, *moved;  // [batch, nodes, width], [batch, nodes, dims]
};

template <typename T> struct Grads {
  const T *total, *moved;
  T *receiver, *sender, *received, *sent;  // by the ends, and by their coordinates
  T *attr;                                 // [batch, edges, a]
  // One after another, all of this width: weight and coord [hidden], first layer [1 + a], bias,
  // coord_bias, coord_last, gate, gate_bias [1].
  T *weights;
};

// Where the rows of Grads.weights begin.
struct Layout {
  int64_t weight, coord, first, bias, coord_bias, coord_last, gate, gate_bias, rows;
  Layout(int64_t hidden, int64_t attributes)
      : weight(0), coord(hidden), first(2 * hidden), bias(first + 1 + attributes),
        coord_bias(bias + 1), coord_last(bias + 2), gate(bias + 3), gate_bias(bias + 4),
        rows(bias + 5) {}
};

// Adds rows up by receiver. Rows come in order; a receiver is written when the next one begins.
template <typename T> struct Collector {
  T *out;
  int64_t width;
  T *carry;    // where the first receiver of the chunk goes if another chunk has begun it
  T *current;  // its sum so far
  int64_t row, carried_row;

  void begin(int64_t first_row, bool begun_before) {
    row = first_row;
    carried_row = begun_before ? first_row : -1;
    std::fill_n(current, width, T(0));
  }
  void flush() {
    std::copy_n(current, width, row == carried_row ? carry : out + row * width);
    std::fill_n(current, width, T(0));
  }
  void add(int64_t count, const int64_t *rows, const T *x) {
    for (int64_t start = 0, end; start < count; start = end) {
      if (rows[start] != row) {
        flush();
        row = rows[start];
      }
      for (end = start + 1; end < count && rows[end] == row; end++) {}
      if (width % LANES<T>) {
        for (int64_t e = start; e < end; e++)
          for (int64_t c = 0; c < width; c++) current[c] += x[e * width + c];
        continue;
      }
      for (int64_t c = 0; c < width; c += LANES<T>) {
        Vec<T> total = at(x + start * width + c);
        for (int64_t e = start + 1; e < end; e++) total += at(x + e * width + c);
        at(current + c) += total;
      }
    }
  }
};

// What was carried, of every chunk.
template <typename T> struct Carries {
  int64_t width;
  std::vector<T> sums;
  std::vector<int64_t> rows;

  Carries(int64_t chunks, int64_t width) : width(width), sums(chunks * width), rows(chunks, -1) {}
  void add_to(T *out) const {
    for (size_t chunk = 0; chunk < rows.size(); chunk++)
      for (int64_t c = 0; rows[chunk] >= 0 && c < width; c++)
        out[rows[chunk] * width + c] += sums[chunk * width + c];
  }
};

// One thread's walk through blocks of edges.
template <typename T, typename I> struct Walk {
  const Edges<T, I> &g;
  const T *weight_turned, *coord_turned;
  int64_t w, count = 0, first = 0;
  int64_t node[BLOCK];             // receivers, and then
  int64_t to[BLOCK], from[BLOCK];  // rows of receivers and senders among those of all samples
  T squared[BLOCK], openness[BLOCK], size[BLOCK];
  T *difference, *move, *end;        // [BLOCK, dims] twice, and the end of the memory
  T *u, *du, *v, *dv, *m, *c, *dc, *grad;  // [BLOCK, width]

  static size_t needs(const Edges<T, I> &g) { return BLOCK * (8 * g.width + 2 * g.dims); }

  Walk(const Edges<T, I> &g, const T *weight_turned, const T *coord_turned, T *memory)
      : g(g), weight_turned(weight_turned), coord_turned(coord_turned), w(g.width) {
    for (T **room : {&u, &du, &v, &dv, &m, &c, &dc, &grad}) *room = memory, memory += BLOCK * w;
    difference = memory;
    move = memory + BLOCK * g.dims;
    end = move + BLOCK * g.dims;
  }

  bool moves() const { return g.coord != nullptr; }

  // Takes up the edges [start, start + n), counted through all samples.
  void take(int64_t start, int64_t n) {
    first = start, count = n;
    int64_t sample = start / g.edges, local = start % g.edges;
    for (int64_t e = 0; e < n; e++) {
      node[e] = g.index[local];
      to[e] = sample * g.nodes + node[e];
      from[e] = sample * g.senders + g.columns[local];
      if (++local == g.edges) local = 0, sample++;
    }
  }

  const T *attributes(int64_t e) const {
    int64_t sample = (first + e) / g.edges, local = (first + e) % g.edges;
    return g.attr + sample * g.attr_stride + local * g.attributes;
  }

  // u, then v and the message m; for the gradient, the slopes of both as well.
  void messages(bool slopes) {
    for (int64_t e = 0; e < count; e++) {
      const T *p = g.receiver + to[e] * w, *q = g.sender + from[e] * w;
      T *out = u + e * w;
      squared[e] = 0;
      if (g.pos) {
        const T *x = g.pos + to[e] * g.dims, *y = g.pos + from[e] * g.dims;
        T *r = difference + e * g.dims;
        for (int64_t d = 0; d < g.dims; d++) {
          r[d] = x[d] - y[d];
          squared[e] += r[d] * r[d];
        }
        for (int64_t j = 0; j < w; j += LANES<T>)
          at(out + j) = at(p + j) + at(q + j) + squared[e] * at(g.distance + j);
      } else {
        for (int64_t j = 0; j < w; j += LANES<T>) at(out + j) = at(p + j) + at(q + j);
      }
      if (g.attr) {
        const T *a = attributes(e);
        for (int64_t k = 0; k < g.attributes; k++)
          for (int64_t j = 0; j < w; j += LANES<T>)
            at(out + j) += a[k] * at(g.attr_weight + k * w + j);
      }
    }
    activate(u, u, slopes ? du : nullptr);
    T *argument = g.second ? g.second + first * w : v;
    if (!g.second || !slopes)
      product(count, u, w, g.hidden, weight_turned, w, g.bias, 0, argument);
    activate(argument, v, slopes ? dv : nullptr);
    if (!g.gate) return;
    for (int64_t e = 0; e < count; e++) {
      Vec<T> open = Vec<T>{} + (dot(v + e * w, g.gate) + *g.gate_bias);
      openness[e] = sigmoid<T>(open)[0];
      for (int64_t j = 0; j < w; j += LANES<T>)
        at(m + e * w + j) = at(v + e * w + j) * openness[e];
    }
  }

  const T *message() const { return g.gate ? m : v; }

  // The factor of every move; its hidden layer stays in c, for the gradient with its slope.
  void sizes(bool slopes) {
    T *argument = g.third ? g.third + first * w : c;
    if (!g.third || !slopes)
      product(count, message(), w, g.hidden, coord_turned, w, g.coord_bias, 0, argument);
    activate(argument, c, slopes ? dc : nullptr);
    for (int64_t e = 0; e < count; e++) size[e] = dot(c + e * w, g.coord_last);
  }

  T length(int64_t e) const {
    if (!g.normalize || squared[e] == 0) return 1;  // coincident points have no direction
    return std::sqrt(squared[e]) + T(1e-8);
  }

  T factor(int64_t e) const { return g.tanh ? std::tanh(size[e]) : size[e]; }

  // How far a clamp shortens a move: by lengths, as the square of one may be beyond all numbers.
  T shortening(T reach) const { return T(g.clamp) / std::max(reach, T(g.clamp)); }

  void displace() {
    for (int64_t e = 0; e < count; e++) {
      const T *r = difference + e * g.dims;
      T *out = move + e * g.dims, scale = factor(e) / length(e);
      for (int64_t d = 0; d < g.dims; d++) out[d] = r[d] * scale;
      if (!g.clamped) continue;
      const T shorter = shortening(std::sqrt(squared[e]) * std::abs(scale));
      for (int64_t d = 0; d < g.dims; d++) out[d] *= shorter;
    }
  }

  // Puts the gradient by r into `move`, and returns that by the factor before its bound.
  T displace_backward(int64_t e, const T *given) {
    const T *r = difference + e * g.dims;
    T *out = move + e * g.dims, scale = T(1) / length(e), f = factor(e), grad_size = 0;
    for (int64_t d = 0; d < g.dims; d++) out[d] = given[d] * g.share(node[e]);
    const T distance = std::sqrt(squared[e]), reach = distance * std::abs(f * scale);
    const bool shortened = g.clamped && reach > T(g.clamp);
    if (shortened) {
      T along = 0;
      for (int64_t d = 0; d < g.dims; d++) along += out[d] * (r[d] / distance);
      for (int64_t d = 0; d < g.dims; d++)
        out[d] = (out[d] - along * (r[d] / distance)) * shortening(reach);
    }
    for (int64_t d = 0; d < g.dims; d++) {
      grad_size += out[d] * r[d] * scale;
      out[d] *= f * scale;
    }
    if (shortened) return 0;  // the length of the move is the clamp, whatever the factor
    return g.tanh ? grad_size * (1 - f * f) : grad_size;
  }

  // y is the SiLU of x, which may be the same memory, and slope the derivative.
  void activate(const T *x, T *y, T *slope) const {
    const int64_t numbers = count * w;
    if (!slope)
      for (int64_t i = 0; i < numbers; i += LANES<T>) at(y + i) = silu<T>(at(x + i));
    for (int64_t i = 0; slope && i < numbers; i += LANES<T>) {
      Vec<T> derivative;
      at(y + i) = silu<T>(at(x + i), derivative);
      at(slope + i) = derivative;
    }
  }

  T dot(const T *x, const T *y) const {
    Vec<T> total = {};
    for (int64_t j = 0; j < w; j += LANES<T>) total += at(x + j) * at(y + j);
    return sum<T>(total);
  }

  // target += scale * x, for every edge or one.
  void add(T *target, T scale, const T *x) const {
    for (int64_t j = 0; j < w; j += LANES<T>) at(target + j) += scale * at(x + j);
  }

  // The whole gradient of a block. By what enters u it is left in `below`, by r in `move`.
  void backward(const Grads<T> &out, T *weights, const Layout &at_row, T *below) {
    messages(true);
    for (int64_t e = 0; e < count; e++) std::copy_n(out.total + to[e] * w, w, grad + e * w);
    std::fill_n(move, count * g.dims, T(0));
    if (moves()) {
      sizes(true);
      for (int64_t e = 0; e < count; e++) {
        T by_size = displace_backward(e, out.moved + to[e] * g.dims);
        add(weights + at_row.coord_last * w, by_size, c + e * w);
        for (int64_t j = 0; j < w; j += LANES<T>)
          at(dc + e * w + j) *= by_size * at(g.coord_last + j);
        add(weights + at_row.coord_bias * w, 1, dc + e * w);
      }
      add_outer(g.hidden, dc, w, count, message(), w, weights + at_row.coord * w);
      product(count, dc, w, g.hidden, g.coord, w, grad, w, grad);
    }
    if (g.gate) {
      for (int64_t e = 0; e < count; e++) {
        T open = openness[e], by_gate = dot(grad + e * w, v + e * w) * open * (1 - open);
        add(weights + at_row.gate * w, by_gate, v + e * w);
        weights[at_row.gate_bias * w] += by_gate;
        for (int64_t j = 0; j < w; j += LANES<T>)
          at(grad + e * w + j) = at(grad + e * w + j) * open + by_gate * at(g.gate + j);
      }
    }
    for (int64_t e = 0; e < count; e++) {
      for (int64_t j = 0; j < w; j += LANES<T>) at(grad + e * w + j) *= at(dv + e * w + j);
      add(weights + at_row.bias * w, 1, grad + e * w);
    }
    add_outer(g.hidden, grad, w, count, u, w, weights + at_row.weight * w);
    std::fill_n(below, count * w, T(0));
    product(count, grad, w, g.hidden, g.weight, w, below, w, below);
    for (int64_t i = 0; i < count * w; i += LANES<T>) at(below + i) *= at(du + i);
    for (int64_t e = 0; e < count; e++) {
      T *first_layer = weights + at_row.first * w;
      if (g.pos) {
        add(first_layer, squared[e], below + e * w);
        T along = 2 * dot(below + e * w, g.distance);
        for (int64_t d = 0; d < g.dims; d++)
          move[e * g.dims + d] += along * difference[e * g.dims + d];
      }
      for (int64_t k = 0; k < g.attributes; k++) {
        add(first_layer + (1 + k) * w, attributes(e)[k], below + e * w);
        out.attr[(first + e) * g.attributes + k] = dot(below + e * w, g.attr_weight + k * w);
      }
    }
  }
};

// Small enough that a few threads share a small batch evenly; the same whatever their number.
inline int64_t chunk_size(int64_t edges) {
  int64_t blocks = (edges / 64 + BLOCK - 1) / BLOCK;
  return std::clamp(blocks * BLOCK, BLOCK, MOST_CHUNK);
}

// Whether the edge before this one, in the same sample, has the same receiver.
template <typename T, typename I> bool begun(const Edges<T, I> &g, int64_t edge) {
  int64_t local = edge % g.edges;
  return local > 0 && g.index[local] == g.index[local - 1];
}

template <typename T, typename I> void forward(const Edges<T, I> &g, const Sums<T> &out) {
  int64_t edges = g.batch * g.edges, size = chunk_size(edges), chunks = (edges + size - 1) / size;
  Carries<T> messages(chunks, g.width), moves(chunks, g.dims);
  Turned<T> weight(g.weight, g.hidden, g.hidden, g.width, g.width);
  Turned<T> coord(g.coord, g.hidden, g.hidden, g.width, g.width);
#pragma omp parallel num_threads(g.threads)
  {
    T *memory = scratch<T>(g.width + Walk<T, I>::needs(g) + g.dims);
    Walk<T, I> walk(g, weight.data, coord.data, memory + g.width);
    Collector<T> total{out.total, g.width, nullptr, memory, 0, 0};
    Collector<T> moved{out.moved, g.dims, nullptr, walk.end, 0, 0};
#pragma omp for schedule(dynamic)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      int64_t start = chunk * size, end = std::min(edges, start + size);
      total.carry = &messages.sums[chunk * g.width];
      moved.carry = moves.sums.data() + chunk * g.dims;
      for (int64_t edge = start; edge < end; edge += BLOCK) {
        walk.take(edge, std::min(BLOCK, end - edge));
        if (edge == start) {
          total.begin(walk.to[0], begun(g, start));
          moved.begin(walk.to[0], begun(g, start));
        }
        walk.messages(false);
        total.add(walk.count, walk.to, walk.message());
        if (!walk.moves()) continue;
        walk.sizes(false);
        walk.displace();
        moved.add(walk.count, walk.to, walk.move);
      }
      total.flush();
      messages.rows[chunk] = total.carried_row;
      if (!walk.moves()) continue;
      moved.flush();
      moves.rows[chunk] = moved.carried_row;
    }
  }
  messages.add_to(out.total);
  if (!out.moved) return;
  moves.add_to(out.moved);
  for (int64_t row = 0; row < g.batch * g.nodes; row++)
    for (int64_t d = 0; d < g.dims; d++) out.moved[row * g.dims + d] *= g.share(row % g.nodes);
}

template <typename T, typename I> void backward(const Edges<T, I> &g, const Grads<T> &out) {
  int64_t edges = g.batch * g.edges, size = chunk_size(edges), chunks = (edges + size - 1) / size;
  Layout layout(g.hidden, g.attributes);
  int64_t numbers = layout.rows * g.width, dims = g.dims;
  int64_t wave = std::min(WAVE_PER_THREAD * g.threads, MOST_WAVE) / size * size;
  int64_t waiting = std::min(wave, edges);
  Carries<T> to_receiver(chunks, g.width), to_pos(chunks, dims);
  Turned<T> weight(g.weight, g.hidden, g.hidden, g.width, g.width);
  Turned<T> coord(g.coord, g.hidden, g.hidden, g.width, g.width);
  static thread_local std::vector<T> shared;
  shared.resize(waiting * (g.width + dims) + g.threads * numbers + LANES<T>);
  T *below = aligned(shared), *lanes = below + waiting * g.width;
  T *by_move = lanes + g.threads * numbers;
  static thread_local std::vector<int64_t> senders;
  senders.resize(waiting);
  int64_t *sender = senders.data();
  for (int64_t wave_start = 0; wave_start < edges; wave_start += wave) {
    int64_t wave_end = std::min(edges, wave_start + wave);
#pragma omp parallel num_threads(g.threads)
    {
      int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
      T *memory = scratch<T>(g.width + Walk<T, I>::needs(g) + dims);
      Walk<T, I> walk(g, weight.data, coord.data, memory + g.width);
      Collector<T> received{out.receiver, g.width, nullptr, memory, 0, 0};
      Collector<T> displaced{out.received, dims, nullptr, walk.end, 0, 0};
      T *weights = lanes + thread * numbers;
      std::fill_n(weights, numbers, T(0));
#pragma omp for schedule(static)
      for (int64_t chunk = wave_start / size; chunk < (wave_end + size - 1) / size; chunk++) {
        int64_t start = chunk * size, end = std::min(edges, start + size);
        received.carry = &to_receiver.sums[chunk * g.width];
        displaced.carry = to_pos.sums.data() + chunk * dims;
        for (int64_t edge = start; edge < end; edge += BLOCK) {
          walk.take(edge, std::min(BLOCK, end - edge));
          if (edge == start) {
            received.begin(walk.to[0], begun(g, start));
            displaced.begin(walk.to[0], begun(g, start));
          }
          T *here = below + (edge - wave_start) * g.width;
          walk.backward(out, weights, layout, here);
          received.add(walk.count, walk.to, here);
          std::copy_n(walk.from, walk.count, sender + edge - wave_start);
          if (!g.pos) continue;
          displaced.add(walk.count, walk.to, walk.move);
          std::copy_n(walk.move, walk.count * dims, by_move + (edge - wave_start) * dims);
        }
        received.flush();
        to_receiver.rows[chunk] = received.carried_row;
        if (!g.pos) continue;
        displaced.flush();
        to_pos.rows[chunk] = displaced.carried_row;
      }
      // Every thread adds to its own senders, edge by edge, so that their order stands.
      int64_t owners = 1;
      while (owners * 2 <= team) owners *= 2;
      for (int64_t e = 0; thread < owners && e < wave_end - wave_start; e++) {
        int64_t row = sender[e];
        if ((row & (owners - 1)) != thread) continue;
        walk.add(out.sender + row * g.width, 1, below + e * g.width);
        for (int64_t d = 0; g.pos && d < dims; d++) out.sent[row * dims + d] += by_move[e * dims + d];
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < numbers; i++)
        for (int64_t lane = 0; lane < team; lane++) out.weights[i] += lanes[lane * numbers + i];
    }
  }
  to_receiver.add_to(out.receiver);
  if (g.pos) to_pos.add_to(out.received);
}

} // namespace gsym

#define GSYM_DIRECTION(T, I, NAME, RESULTS, WORK)                                                  \
  extern "C" int gsym_edges_##NAME(const gsym::Edges<T, I> *g, const gsym::RESULTS<T> *out) {      \
    return gsym::answer(gsym::spans(g->pointers, g->nodes, g->edges),                              \
                        [&] { gsym::WORK(*g, *out); });                                            \
  }

#define GSYM_EDGES(T, I, NAME)                                                                     \
  GSYM_DIRECTION(T, I, forward_##NAME, Sums, forward)                                              \
  GSYM_DIRECTION(T, I, backward_##NAME, Grads, backward)

GSYM_EDGES(float, int32_t, float32_int32)
GSYM_EDGES(float, int64_t, float32_int64)
GSYM_EDGES(double, int32_t, float64_int32)
GSYM_EDGES(double, int64_t, float64_int64)

extern "C" int gsym_vector_bytes() { return gsym::VECTOR_BYTES; }
