// act(norm(x) * gamma + beta [+ shortcut]) over channels-last memory, forward and backward, in float32 and bfloat16.
//
// A channels-last activation is a matrix of M rows (places of all images) by C channels. All loops below see it as a matrix of R rows
// by E columns instead, where E is the smallest multiple of both C and the vector length: then every row holds whole vectors,
// whatever C is, and column e belongs to channel e % C. The M * C - R * E elements behind the last whole row are done one by one.
//
// Sums are taken in float over blocks of rows and in double over blocks and threads, in an order that depends on the number of threads
// alone, so results are the same in every call.
//
// Compiled once for AVX2 and once for AVX-512; Python loads the one that the processor has (see compiled.py).

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

using at::BFloat16;
using at::vec::Vectorized;
using Float = Vectorized<float>;

constexpr int64_t LANES = Float::size();
constexpr int64_t BLOCK = 64;  // rows that are summed in float

// Two vectors of floats are read and written at a time: one whole vector of bfloat16.
struct Pair {
  Float low, high;
};
constexpr int64_t WIDE = 2 * LANES;

inline Pair load(const float* p) {
  return {Float::loadu(p), Float::loadu(p + LANES)};
}
inline Pair load(const BFloat16* p) {
  auto [low, high] = at::vec::convert_to_float(Vectorized<BFloat16>::loadu(p));
  return {low, high};
}
inline void store(float* p, const Pair& v) {
  v.low.store(p);
  v.high.store(p + LANES);
}
inline void store(BFloat16* p, const Pair& v) {
  at::vec::convert_from_float<BFloat16>(v.low, v.high).store(p);
}

struct Shape {
  int64_t size, channels, columns, rows;
  Shape(int64_t places, int64_t channels)
      : size(places * channels), channels(channels), columns(std::lcm(channels, WIDE)), rows(size / columns) {}
  int64_t tail() const { return rows * columns; }  // first element behind the whole rows
};

// A value for each channel, repeated over the columns.
std::vector<float> spread(const float* values, const Shape& shape) {
  std::vector<float> out(shape.columns);
  for (int64_t e = 0; e < shape.columns; ++e) out[e] = values[e % shape.channels];
  return out;
}

// The rows of thread t of n.
inline std::pair<int64_t, int64_t> part(int64_t rows, int t, int n) {
  return {rows * t / n, rows * (t + 1) / n};
}

// Sums over each channel of two quantities. `vector` gives both for a place of WIDE elements, `scalar` for one element.
template <class OfVector, class OfScalar>
void sums(const Shape& shape, int threads, OfVector vector, OfScalar scalar, double* first, double* second) {
  const int64_t columns = shape.columns;
  std::vector<double> partial(2 * columns * threads, 0.0);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    auto [begin, end] = part(shape.rows, t, threads);
    double* one = partial.data() + 2 * columns * t;
    double* two = one + columns;
    float buffer[2 * WIDE];
    for (int64_t block = begin; block < end; block += BLOCK) {
      const int64_t stop = std::min(block + BLOCK, end);
      for (int64_t e = 0; e < columns; e += WIDE) {
        Pair a{Float(0), Float(0)}, b{Float(0), Float(0)};
        for (int64_t r = block; r < stop; ++r) vector(r * columns + e, e, a, b);
        store(buffer, a);
        store(buffer + WIDE, b);
        for (int64_t i = 0; i < WIDE; ++i) {
          one[e + i] += buffer[i];
          two[e + i] += buffer[WIDE + i];
        }
      }
    }
  }
  std::fill(first, first + shape.channels, 0.0);
  std::fill(second, second + shape.channels, 0.0);
  for (int t = 0; t < threads; ++t)
    for (int64_t e = 0; e < columns; ++e) {
      first[e % shape.channels] += partial[2 * columns * t + e];
      second[e % shape.channels] += partial[2 * columns * t + columns + e];
    }
  for (int64_t i = shape.tail(); i < shape.size; ++i) {
    const int64_t c = i % shape.channels;
    scalar(i, c, first[c], second[c]);
  }
}

// Calls `vector(i, e)` for each place of WIDE elements, and `scalar(i, c)` for each element behind the whole rows.
template <class OfVector, class OfScalar>
void each(const Shape& shape, int threads, OfVector vector, OfScalar scalar) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    auto [begin, end] = part(shape.rows, t, threads);
    for (int64_t r = begin; r < end; ++r)
      for (int64_t e = 0; e < shape.columns; e += WIDE) vector(r * shape.columns + e, e);
  }
  for (int64_t i = shape.tail(); i < shape.size; ++i) scalar(i, i % shape.channels);
}

template <class T>
void statistics(const T* x, int64_t places, int64_t channels, int threads, float* mean, float* variance) {
  const Shape shape(places, channels);
  std::vector<float> shift(channels);  // sums of squares are taken around the first place, so that a large mean cancels nothing
  for (int64_t c = 0; c < channels; ++c) shift[c] = static_cast<float>(x[c]);
  const std::vector<float> wide = spread(shift.data(), shape);
  std::vector<double> sum(channels), squares(channels);
  sums(
      shape, threads,
      [&](int64_t i, int64_t e, Pair& a, Pair& b) {
        const Pair v = load(x + i), s = load(wide.data() + e);
        const Float low = v.low - s.low, high = v.high - s.high;
        a = {a.low + low, a.high + high};
        b = {at::vec::fmadd(low, low, b.low), at::vec::fmadd(high, high, b.high)};
      },
      [&](int64_t i, int64_t c, double& a, double& b) {
        const double v = static_cast<double>(static_cast<float>(x[i])) - shift[c];
        a += v;
        b += v * v;
      },
      sum.data(), squares.data());
  for (int64_t c = 0; c < channels; ++c) {
    const double offset = sum[c] / places;
    mean[c] = static_cast<float>(shift[c] + offset);
    variance[c] = static_cast<float>(std::max(squares[c] / places - offset * offset, 0.0));
  }
}

// y = act(x * scale + bias [+ shortcut])
template <class T>
void apply(
    const T* x, const float* scale, const float* bias, const T* shortcut, bool relu, int64_t places, int64_t channels, int threads,
    T* y) {
  const Shape shape(places, channels);
  const std::vector<float> scales = spread(scale, shape), biases = spread(bias, shape);
  const Float zero(0);
  each(
      shape, threads,
      [&](int64_t i, int64_t e) {
        const Pair v = load(x + i), s = load(scales.data() + e), b = load(biases.data() + e);
        Pair out{at::vec::fmadd(v.low, s.low, b.low), at::vec::fmadd(v.high, s.high, b.high)};
        if (shortcut != nullptr) {
          const Pair add = load(shortcut + i);
          out = {out.low + add.low, out.high + add.high};
        }
        if (relu) out = {at::vec::maximum(out.low, zero), at::vec::maximum(out.high, zero)};
        store(y + i, out);
      },
      [&](int64_t i, int64_t c) {
        float out = static_cast<float>(x[i]) * scale[c] + bias[c];
        if (shortcut != nullptr) out += static_cast<float>(shortcut[i]);
        y[i] = static_cast<T>(relu && !(out > 0) && out == out ? 0.0f : out);  // a NaN stays one
      });
}

// The gradient behind the activation: where y is zero, the ReLU lets nothing through.
template <class T>
inline Pair masked(const T* gradient, const T* y, bool relu, int64_t i) {
  Pair g = load(gradient + i);
  if (relu) {
    const Pair out = load(y + i);
    const Float zero(0);
    g = {Float::blendv(zero, g.low, out.low > zero), Float::blendv(zero, g.high, out.high > zero)};
  }
  return g;
}
template <class T>
inline float masked_one(const T* gradient, const T* y, bool relu, int64_t i) {
  return relu && !(static_cast<float>(y[i]) > 0) ? 0.0f : static_cast<float>(gradient[i]);
}

// For each channel: the sum of the gradient g behind the activation, and the sum of g times the normalised input.
template <class T>
void backward_sums(
    const T* gradient, const T* y, const T* x, const float* mean, const float* inverse, bool relu, int64_t places, int64_t channels,
    int threads, float* of_bias, float* of_weight) {
  const Shape shape(places, channels);
  const std::vector<float> means = spread(mean, shape);
  std::vector<double> sum(channels), product(channels);
  sums(
      shape, threads,
      [&](int64_t i, int64_t e, Pair& a, Pair& b) {
        const Pair g = masked(gradient, y, relu, i), v = load(x + i), m = load(means.data() + e);
        a = {a.low + g.low, a.high + g.high};
        b = {at::vec::fmadd(g.low, v.low - m.low, b.low), at::vec::fmadd(g.high, v.high - m.high, b.high)};
      },
      [&](int64_t i, int64_t c, double& a, double& b) {
        const double g = masked_one(gradient, y, relu, i);
        a += g;
        b += g * (static_cast<double>(static_cast<float>(x[i])) - mean[c]);
      },
      sum.data(), product.data());
  for (int64_t c = 0; c < channels; ++c) {
    of_bias[c] = static_cast<float>(sum[c]);
    of_weight[c] = static_cast<float>(product[c] * inverse[c]);
  }
}

// The input's gradient a * g + b * x + d with a value of a, b and d for each channel; and g itself, the shortcut's, where it is asked for.
template <class T>
void backward_input(
    const T* gradient, const T* y, const T* x, const float* a, const float* b, const float* d, bool relu, int64_t places,
    int64_t channels, int threads, T* of_x, T* of_shortcut) {
  const Shape shape(places, channels);
  const std::vector<float> as = spread(a, shape), bs = spread(b, shape), ds = spread(d, shape);
  each(
      shape, threads,
      [&](int64_t i, int64_t e) {
        const Pair g = masked(gradient, y, relu, i), v = load(x + i);
        const Pair p = load(as.data() + e), q = load(bs.data() + e), r = load(ds.data() + e);
        store(
            of_x + i, {at::vec::fmadd(p.low, g.low, at::vec::fmadd(q.low, v.low, r.low)),
                       at::vec::fmadd(p.high, g.high, at::vec::fmadd(q.high, v.high, r.high))});
        if (of_shortcut != nullptr) store(of_shortcut + i, g);
      },
      [&](int64_t i, int64_t c) {
        const float g = masked_one(gradient, y, relu, i);
        of_x[i] = static_cast<T>(a[c] * g + b[c] * static_cast<float>(x[i]) + d[c]);
        if (of_shortcut != nullptr) of_shortcut[i] = static_cast<T>(g);
      });
}

}  // namespace

#define EXPORT_FOR(NAME, T)                                                                                                        \
  extern "C" void statistics_##NAME(const T* x, int64_t places, int64_t channels, int threads, float* mean, float* variance) {     \
    statistics<T>(x, places, channels, threads, mean, variance);                                                                   \
  }                                                                                                                                \
  extern "C" void apply_##NAME(                                                                                                    \
      const T* x, const float* scale, const float* bias, const T* shortcut, int relu, int64_t places, int64_t channels,            \
      int threads, T* y) {                                                                                                         \
    apply<T>(x, scale, bias, shortcut, relu, places, channels, threads, y);                                                        \
  }                                                                                                                                \
  extern "C" void backward_sums_##NAME(                                                                                            \
      const T* gradient, const T* y, const T* x, const float* mean, const float* inverse, int relu, int64_t places,                \
      int64_t channels, int threads, float* of_bias, float* of_weight) {                                                           \
    backward_sums<T>(gradient, y, x, mean, inverse, relu, places, channels, threads, of_bias, of_weight);                          \
  }                                                                                                                                \
  extern "C" void backward_input_##NAME(                                                                                           \
      const T* gradient, const T* y, const T* x, const float* a, const float* b, const float* d, int relu, int64_t places,         \
      int64_t channels, int threads, T* of_x, T* of_shortcut) {                                                                    \
    backward_input<T>(gradient, y, x, a, b, d, relu, places, channels, threads, of_x, of_shortcut);                                \
  }

EXPORT_FOR(float32, float)
EXPORT_FOR(bfloat16, BFloat16)
