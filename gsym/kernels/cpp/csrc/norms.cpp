// Rows after ELU, normalised by segment as gsym.kernels.norms composes it, with the gradient.
//
// Every segment is one thread's, so neither the threads nor their number change a bit.
#include "call.h"
#include "vector.h"

namespace gsym {
namespace {

// Rows that are added one after another: the rounding error of a running sum grows with its length.
constexpr int64_t PIECE = 256;

// Mirrored in gsym/kernels/cpp/norms.py. Channels are whole vectors.
template <typename T> struct Norm {
  int64_t rows, segments, channels, threads;
  double eps;
  const int64_t *pointers;                      // [segments + 1]
  const T *x, *weight, *bias, *mean_scale;      // [rows, c], [c] each
  T *mean, *inverse;                            // [segments, c] each
};

template <typename T> inline Vec<T> elu(Vec<T> x) {
  return x > T(0) ? x : exponential<T>(x) - T(1);
}

// total [c] = the sum of term(row, channel) over rows [first, end).
template <typename T, typename Term>
void sum_rows(int64_t first, int64_t end, int64_t c, T *piece, double *total, Term term) {
  std::fill_n(total, c, 0.0);
  for (int64_t start = first; start < end; start += PIECE) {
    int64_t stop = std::min(end, start + PIECE);
    std::fill_n(piece, c, T(0));
    for (int64_t r = start; r < stop; r++)
      for (int64_t j = 0; j < c; j += LANES<T>) at(piece + j) += term(r * c + j, j);
    for (int64_t j = 0; j < c; j++) total[j] += piece[j];
  }
}

template <typename T> void norm_forward(const Norm<T> &g, T *y) {
  int64_t c = g.channels;
#pragma omp parallel num_threads(g.threads)
  {
    T *memory = scratch<T>(3 * c), *centre = memory + c, *scale = centre + c;
    std::vector<double> total(c);
#pragma omp for schedule(dynamic)
    for (int64_t s = 0; s < g.segments; s++) {
      int64_t first = g.pointers[s], end = g.pointers[s + 1];
      double part = 1.0 / std::max<int64_t>(end - first, 1);
      sum_rows<T>(first, end, c, memory, total.data(), [&](int64_t at_row, int64_t) {
        return at(y + at_row) = elu<T>(at(g.x + at_row));
      });
      for (int64_t j = 0; j < c; j++) {
        g.mean[s * c + j] = total[j] * part;
        centre[j] = g.mean[s * c + j] * g.mean_scale[j];
      }
      sum_rows<T>(first, end, c, memory, total.data(), [&](int64_t at_row, int64_t j) {
        Vec<T> out = at(y + at_row) - at(centre + j);
        return out * out;
      });
      for (int64_t j = 0; j < c; j++) {
        g.inverse[s * c + j] = 1 / std::sqrt(total[j] * part + g.eps);
        scale[j] = g.inverse[s * c + j] * g.weight[j];
      }
      for (int64_t r = first; r < end; r++)
        for (int64_t j = 0; j < c; j += LANES<T>) {
          T *to = y + r * c + j;
          at(to) = (at(to) - at(centre + j)) * at(scale + j) + at(g.bias + j);
        }
    }
  }
}

// `parts` [segments, 3, c] are what every segment gives to the gradients of weight, bias and
// mean_scale.
template <typename T> void norm_backward(const Norm<T> &g, const T *grad, T *by_x, T *parts) {
  int64_t c = g.channels;
#pragma omp parallel num_threads(g.threads)
  {
    T *memory = scratch<T>(5 * c), *centre = memory + c, *scale = centre + c;
    T *slope = scale + c, *shift = slope + c;
    std::vector<double> sums(2 * c);
    double *given = sums.data(), *along = given + c;
#pragma omp for schedule(dynamic)
    for (int64_t s = 0; s < g.segments; s++) {
      int64_t first = g.pointers[s], end = g.pointers[s + 1];
      double part = 1.0 / std::max<int64_t>(end - first, 1);
      for (int64_t j = 0; j < c; j++) centre[j] = g.mean[s * c + j] * g.mean_scale[j];
      sum_rows<T>(first, end, c, memory, given,
                  [&](int64_t at_row, int64_t) { return at(grad + at_row); });
      sum_rows<T>(first, end, c, memory, along, [&](int64_t at_row, int64_t j) {
        at(by_x + at_row) = elu<T>(at(g.x + at_row));
        return at(grad + at_row) * (at(by_x + at_row) - at(centre + j));
      });
      for (int64_t j = 0; j < c; j++) {
        double inverse = g.inverse[s * c + j], mean = g.mean[s * c + j], a = inverse * g.weight[j];
        // That of the variance, twice a mean of what is centred.
        double k = -inverse * inverse * a * along[j] * part;
        double by_centre = -(a * given[j] + k * mean * (1 - g.mean_scale[j]) / part);
        T *to = parts + s * 3 * c + j;
        to[0] = along[j] * inverse, to[c] = given[j], to[2 * c] = by_centre * mean;
        scale[j] = a, slope[j] = k, shift[j] = by_centre * g.mean_scale[j] * part;
      }
      for (int64_t r = first; r < end; r++)
        for (int64_t j = 0; j < c; j += LANES<T>) {
          T *to = by_x + r * c + j;
          Vec<T> x = at(to), out = x - at(centre + j);
          Vec<T> by = at(grad + r * c + j) * at(scale + j) + out * at(slope + j) + at(shift + j);
          at(to) = x > T(0) ? by : by * (x + T(1));
        }
    }
  }
}

} // namespace
} // namespace gsym

#define GSYM_NORMS(T, NAME)                                                                        \
  extern "C" int gsym_norm_forward_##NAME(const gsym::Norm<T> *g, T *const *results) {             \
    return gsym::answer(gsym::spans(g->pointers, g->segments, g->rows),                            \
                        [&] { gsym::norm_forward(*g, results[0]); });                              \
  }                                                                                                \
  extern "C" int gsym_norm_backward_##NAME(const gsym::Norm<T> *g, T *const *given) {              \
    return gsym::answer(gsym::spans(g->pointers, g->segments, g->rows),                            \
                        [&] { gsym::norm_backward(*g, given[0], given[1], given[2]); });           \
  }

GSYM_NORMS(float, float32)
GSYM_NORMS(double, float64)
