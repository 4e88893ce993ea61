// What ego-networks hold of pairs as a whole, with its adjoint.
#include "call.h"
#include "lifted.h"

namespace gsym {
namespace {

// Trace over m and total over m^2 of every subgraph of m nodes, [subgraphs, 2 in].
template <typename T> void sum_subgraphs(const Lifted<T> &g, T *to) {
  int64_t c = g.in;
  const T *x = g.pairs_half.x;
#pragma omp parallel for num_threads(g.threads) schedule(dynamic, BLOCK)
  for (int64_t s = 0; s < g.subgraphs; s++) {
    int64_t m = g.first_entry[s + 1] - g.first_entry[s];
    const int32_t *place = g.place + g.first_place[s];
    T *trace = to + s * 2 * c, *total = trace + c, part = T(1) / std::max<int64_t>(m, 1);
    std::fill_n(trace, 2 * c, T(0));
    for (int64_t a = 0; a < m; a++) add(trace, x + place[a * m + a] * c, c);
    int64_t rest = by_vectors<T>(c, [&](auto vectors, int64_t j) {
      constexpr int V = decltype(vectors)::value;
      Vec<T> sum[V] = {};
      for (int64_t q = 0; q < m * m; q++)
        for (int v = 0; v < V; v++) sum[v] += at(x + place[q] * c + j + v * LANES<T>);
      for (int v = 0; v < V; v++) at(total + j + v * LANES<T>) = sum[v];
    });
    for (int64_t q = 0; rest < c && q < m * m; q++)
      for (int64_t j = rest; j < c; j++) total[j] += x[place[q] * c + j];
    for (int64_t j = 0; j < c; j++) trace[j] *= part, total[j] *= part * part;
  }
}

// The adjoint of the same.
template <typename T> void spread_subgraphs(const Lifted<T> &g, const T *from, T *to) {
  int64_t c = g.in;
  Workspace<T> work(g.subgraphs * 2 * c);
  T *scaled = work.take(g.subgraphs * 2 * c);
#pragma omp parallel num_threads(g.threads)
  {
#pragma omp for schedule(static)
    for (int64_t s = 0; s < g.subgraphs; s++) {
      T part = T(1) / std::max(g.first_entry[s + 1] - g.first_entry[s], 1);
      for (int64_t j = 0; j < c; j++) {
        scaled[s * 2 * c + j] = from[s * 2 * c + j] * part;
        scaled[s * 2 * c + c + j] = from[s * 2 * c + c + j] * part * part;
      }
    }
#pragma omp for schedule(dynamic, BLOCK)
    for (int64_t p = 0; p < g.pairs; p++) {
      T *out = to + p * c;
      std::fill_n(out, c, T(0));
      for (int64_t q = g.by_pair[p]; q < g.by_pair[p + 1]; q++) {
        const T *mine = scaled + g.owner[g.at_row[q]] * 2 * c;
        add(out, mine + c, c);
        if (g.first[p] == g.second[p]) add(out, mine, c);
      }
    }
  }
}

} // namespace
} // namespace gsym

#define GSYM_TOTALS(T, NAME)                                                                       \
  extern "C" int gsym_lifted_sums_##NAME(const gsym::Lifted<T> *g, T *const *results) {            \
    return gsym::answer([&] { gsym::sum_subgraphs(*g, results[0]); });                             \
  }                                                                                                \
  extern "C" int gsym_lifted_spread_##NAME(const gsym::Lifted<T> *g, T *const *given) {            \
    return gsym::answer([&] { gsym::spread_subgraphs(*g, given[0], given[1]); });                  \
  }

GSYM_TOTALS(float, float32)
GSYM_TOTALS(double, float64)
