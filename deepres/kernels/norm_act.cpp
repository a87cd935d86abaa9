// act(norm(x) * gamma + beta [+ shortcut]) over channels-last memory, forward and backward, in float32 and bfloat16.
//
// A channels-last activation is a matrix of M rows (places of all images) by C channels. All loops below see it as a matrix of R rows
// by E columns instead, where E is the smallest multiple of both C and the vector length: then every row holds whole vectors,
// whatever C is, and column e belongs to channel e % C. The M * C - R * E elements behind the last whole row are done one by one.
//
// Sums are taken in float over blocks of rows and in double over blocks and threads, in an order that depends on the number of threads
// alone, so results are the same in every call.
//
// bfloat16 is where instructions are saved: the output's signs are taken on 16-bit integers, and the result is rounded by one
// instruction where the processor has one (AVX512_BF16).
//
// Where activations are larger than the cache, memory sets the time. So the ReLU's mask is taken from the input where no shortcut was
// added; where one was, the first loop of the backward pass writes the masked gradient, the shortcut's, and the second reads that instead
// of gradient and output; and what the loops read is asked for in advance.
//
// Compiled for AVX2 or AVX-512, whichever the processor has (see compiled.py).

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

namespace {

using at::BFloat16;
using at::vec::Vectorized;
using Float = Vectorized<float>;

constexpr int64_t LANES = Float::size();
// Two vectors of floats are read and written at a time: one whole vector of bfloat16.
struct Pair {
  Float low, high;
};
constexpr int64_t WIDE = 2 * LANES;

inline Pair load(const float* p) {
  return {Float::loadu(p), Float::loadu(p + LANES)};
}
#ifdef CPU_CAPABILITY_AVX512
inline Float widen(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
inline Float relu(const Float& v) {
  return _mm512_max_ps(_mm512_setzero_ps(), v);  // in this order a NaN stays one
}
inline Pair load(const BFloat16* p) {
  const auto* q = reinterpret_cast<const __m256i*>(p);
  return {widen(_mm256_loadu_si256(q)), widen(_mm256_loadu_si256(q + 1))};
}
#else
inline Float widen(__m128i v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
inline Float relu(const Float& v) {
  return _mm256_max_ps(_mm256_setzero_ps(), v);
}
inline Pair load(const BFloat16* p) {
  const auto* q = reinterpret_cast<const __m128i*>(p);
  return {widen(_mm_loadu_si128(q)), widen(_mm_loadu_si128(q + 1))};
}
#endif
inline void store(float* p, const Pair& v) {
  v.low.store(p);
  v.high.store(p + LANES);
}
inline void store(BFloat16* p, const Pair& v) {
#ifdef __AVX512BF16__
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v.high, v.low)));
#else
  at::vec::convert_from_float<BFloat16>(v.low, v.high).store(p);
#endif
}

// Asks for what lies `AHEAD` bytes behind p: the processor's own prefetching stops at the end of each page of 4 KiB.
constexpr int64_t AHEAD = 8192;
inline void prefetch(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + AHEAD, 0, 2);
}

template <class T>
inline Pair load_ahead(const T* p) {
  prefetch(p);
  return load(p);
}

// The gradient where the value is above zero, else zero.
inline Pair where_above_zero(const Pair& value, const Pair& gradient) {
  const Float zero(0);
  return {Float::blendv(zero, gradient.low, value.low > zero), Float::blendv(zero, gradient.high, value.high > zero)};
}
// The same of an output y in memory.
inline Pair load_masked(const float* gradient, const float* y) {
  return where_above_zero(load(y), load(gradient));
}
// A bfloat16 is above zero exactly if it is as a signed 16-bit integer (NaNs apart).
inline Pair load_masked(const BFloat16* gradient, const BFloat16* y) {
#ifdef CPU_CAPABILITY_AVX512
  const __mmask32 above = _mm512_cmpgt_epi16_mask(_mm512_loadu_si512(y), _mm512_setzero_si512());
  const __m512i g = _mm512_maskz_loadu_epi16(above, gradient);
  return {widen(_mm512_castsi512_si256(g)), widen(_mm512_extracti64x4_epi64(g, 1))};
#else
  const __m256i out = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y));
  const __m256i g = _mm256_and_si256(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(gradient)), _mm256_cmpgt_epi16(out, _mm256_setzero_si256()));
  return {widen(_mm256_castsi256_si128(g)), widen(_mm256_extracti128_si256(g, 1))};
#endif
}

constexpr int64_t BLOCK = 64;  // rows that are summed in float

struct Shape {
  int64_t size, channels, columns, rows;
  Shape(int64_t places, int64_t channels)
      : size(places * channels), channels(channels), columns(std::lcm(channels, WIDE)), rows(size / columns) {}
  int64_t tail() const { return rows * columns; }  // first element behind the whole rows
  bool narrow() const { return columns <= 2 * WIDE; }  // few vectors a row: going down a column is as good as going along a row
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

// Sums over each channel of two quantities. `vector(i, stop, e, a, b)` adds both for the places of WIDE elements at i, i + columns, ...
// in front of `stop`, and `scalar` for one element.
template <class OfVector, class OfScalar>
void sums(const Shape& shape, int threads, OfVector vector, OfScalar scalar, double* first, double* second) {
  const int64_t columns = shape.columns;
  std::vector<double> partial(2 * columns * threads, 0.0);
  const int64_t tile = shape.narrow() ? BLOCK : 4;  // rows that one column of vectors goes through before the next
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    auto [begin, end] = part(shape.rows, t, threads);
    double* total = partial.data() + 2 * columns * t;  // for each place of WIDE columns the first quantity, then the second
    std::vector<float> block(2 * columns);
    for (int64_t from = begin; from < end; from += BLOCK) {
      std::fill(block.begin(), block.end(), 0.0f);
      const int64_t to = std::min(from + BLOCK, end);
      for (int64_t row = from; row < to; row += tile)
        for (int64_t e = 0; e < columns; e += WIDE) {
          float* here = block.data() + 2 * e;
          Pair a = load(here), b = load(here + WIDE);
          vector(row * columns + e, std::min(row + tile, to) * columns, e, a, b);
          store(here, a);
          store(here + WIDE, b);
        }
      for (int64_t i = 0; i < 2 * columns; ++i) total[i] += block[i];
    }
  }
  std::fill(first, first + shape.channels, 0.0);
  std::fill(second, second + shape.channels, 0.0);
  for (int t = 0; t < threads; ++t)
    for (int64_t e = 0; e < columns; ++e) {
      const int64_t here = 2 * columns * t + 2 * (e - e % WIDE) + e % WIDE;
      first[e % shape.channels] += partial[here];
      second[e % shape.channels] += partial[here + WIDE];
    }
  for (int64_t i = shape.tail(); i < shape.size; ++i) {
    const int64_t c = i % shape.channels;
    scalar(i, c, first[c], second[c]);
  }
}

// Calls `vector(i, stop, e)` for the places of WIDE elements at i, i + columns, ... in front of `stop`, and `scalar(i, c)` for each element
// behind the whole rows.
template <class OfVector, class OfScalar>
void each(const Shape& shape, int threads, OfVector vector, OfScalar scalar) {
  const int64_t columns = shape.columns, tile = shape.narrow() ? BLOCK : 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    auto [begin, end] = part(shape.rows, t, threads);
    for (int64_t row = begin; row < end; row += tile) {
      const int64_t stop = std::min(row + tile, end) * columns;
      for (int64_t e = 0; e < columns; e += WIDE) vector(row * columns + e, stop, e);
    }
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
      [&](int64_t i, int64_t stop, int64_t e, Pair& a, Pair& b) {
        const Pair s = load(wide.data() + e);
        for (; i < stop; i += shape.columns) {
          const Pair v = load_ahead(x + i);
          const Float low = v.low - s.low, high = v.high - s.high;
          a = {a.low + low, a.high + high};
          b = {at::vec::fmadd(low, low, b.low), at::vec::fmadd(high, high, b.high)};
        }
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

// The norm of one channel as a line: x * scale + offset.
struct Lines {
  std::vector<float> scale, offset;
  Lines(const float* weight, const float* bias, const float* mean, const float* variance, float eps, int64_t channels)
      : scale(channels), offset(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = weight[c] / std::sqrt(variance[c] + eps);
      offset[c] = bias[c] - mean[c] * scale[c];
    }
  }
};
inline Pair on_line(const Pair& x, const Pair& scale, const Pair& offset) {
  return {at::vec::fmadd(x.low, scale.low, offset.low), at::vec::fmadd(x.high, scale.high, offset.high)};
}
inline float on_line(float x, float scale, float offset) {
  return std::fma(x, scale, offset);
}

// y = act(x * scale + offset [+ shortcut])
template <class T, bool ADD, bool RELU>
void apply(const T* x, const Lines& lines, const T* shortcut, int64_t places, int64_t channels, int threads, T* y) {
  const Shape shape(places, channels);
  const std::vector<float> scales = spread(lines.scale.data(), shape), offsets = spread(lines.offset.data(), shape);
  each(
      shape, threads,
      [&](int64_t i, int64_t stop, int64_t e) {
        const Pair s = load(scales.data() + e), o = load(offsets.data() + e);
        for (; i < stop; i += shape.columns) {
          Pair out = on_line(load_ahead(x + i), s, o);
          if constexpr (ADD) {
            const Pair add = load_ahead(shortcut + i);
            out = {out.low + add.low, out.high + add.high};
          }
          if constexpr (RELU) out = {relu(out.low), relu(out.high)};
          store(y + i, out);
        }
      },
      [&](int64_t i, int64_t c) {
        float out = on_line(static_cast<float>(x[i]), lines.scale[c], lines.offset[c]);
        if (ADD) out += static_cast<float>(shortcut[i]);
        y[i] = static_cast<T>(RELU && !(out > 0) && out == out ? 0.0f : out);  // a NaN stays one
      });
}

// How the gradient behind the ReLU is found: there is none, or it is zero where the output, or the norm of the input, is not above zero.
enum class Mask { none, output, input };

// The gradient behind the ReLU at place i, where the input is x. `other` is a second gradient, which is added if OTHER. If KEEP, the
// result is written to `kept` and returned as it is there, so a sum is rounded as if it had been in memory before.
template <Mask MASK, bool OTHER, bool KEEP, class T>
inline Pair gradient_at(
    const T* gradient, const T* other, const T* y, T* kept, int64_t i, const Pair& x, const Pair& scale, const Pair& offset) {
  Pair g;
  if constexpr (MASK == Mask::output && !OTHER) {
    prefetch(gradient + i);
    prefetch(y + i);
    g = load_masked(gradient + i, y + i);
  } else {
    g = load_ahead(gradient + i);
    if constexpr (OTHER) {
      const Pair add = load_ahead(other + i);
      g = {g.low + add.low, g.high + add.high};
    }
    if constexpr (MASK == Mask::output) g = where_above_zero(load_ahead(y + i), g);
    if constexpr (MASK == Mask::input) g = where_above_zero(on_line(x, scale, offset), g);
  }
  if constexpr (KEEP) {
    store(kept + i, g);
    if constexpr (OTHER) g = load(kept + i);
  }
  return g;
}
template <Mask MASK, bool OTHER, bool KEEP, class T>
inline float gradient_at(const T* gradient, const T* other, const T* y, T* kept, int64_t i, float x, float scale, float offset) {
  float g = static_cast<float>(gradient[i]);
  if (OTHER) g = static_cast<float>(static_cast<T>(g + static_cast<float>(other[i])));
  if (MASK != Mask::none && !((MASK == Mask::output ? static_cast<float>(y[i]) : on_line(x, scale, offset)) > 0)) g = 0.0f;
  if (KEEP) kept[i] = static_cast<T>(g);
  return g;
}

// For each channel: the sum of the gradient g behind the activation, and the sum of g times the normalised input. g itself is written
// to `kept` if KEEP.
template <class T, Mask MASK, bool OTHER, bool KEEP>
void backward_sums(
    const T* gradient, const T* other, const T* y, const T* x, const Lines& lines, const float* mean, const float* variance, float eps,
    int64_t places, int64_t channels, int threads, float* of_bias, float* of_weight, T* kept) {
  const Shape shape(places, channels);
  const std::vector<float> means = spread(mean, shape);
  const std::vector<float> scales = spread(lines.scale.data(), shape), offsets = spread(lines.offset.data(), shape);
  std::vector<double> sum(channels), product(channels);
  sums(
      shape, threads,
      [&](int64_t i, int64_t stop, int64_t e, Pair& a, Pair& b) {
        const Pair m = load(means.data() + e), s = load(scales.data() + e), o = load(offsets.data() + e);
        for (; i < stop; i += shape.columns) {
          const Pair v = load_ahead(x + i), g = gradient_at<MASK, OTHER, KEEP>(gradient, other, y, kept, i, v, s, o);
          a = {a.low + g.low, a.high + g.high};
          b = {at::vec::fmadd(g.low, v.low - m.low, b.low), at::vec::fmadd(g.high, v.high - m.high, b.high)};
        }
      },
      [&](int64_t i, int64_t c, double& a, double& b) {
        const float v = static_cast<float>(x[i]);
        const double g = gradient_at<MASK, OTHER, KEEP>(gradient, other, y, kept, i, v, lines.scale[c], lines.offset[c]);
        a += g;
        b += g * (static_cast<double>(v) - mean[c]);
      },
      sum.data(), product.data());
  for (int64_t c = 0; c < channels; ++c) {
    of_bias[c] = static_cast<float>(sum[c]);
    of_weight[c] = static_cast<float>(product[c] / std::sqrt(variance[c] + eps));
  }
}

// The input's gradient, scale * (g - mean(g) - normal * mean(g * normal)) with the normalised input, written as
// scale * g + b * x + d with a value of b and d for each channel. A gradient that `backward_sums` kept needs no mask.
template <class T, Mask MASK>
void backward_input(
    const T* gradient, const T* x, const Lines& lines, const float* mean, const float* variance, float eps, const float* of_bias,
    const float* of_weight, double count, int64_t places, int64_t channels, int threads, T* of_x) {
  const Shape shape(places, channels);
  std::vector<float> b(channels), d(channels);
  for (int64_t c = 0; c < channels; ++c) {
    b[c] = static_cast<float>(-lines.scale[c] / std::sqrt(variance[c] + eps) * (of_weight[c] / count));
    d[c] = static_cast<float>(-lines.scale[c] * (of_bias[c] / count) - static_cast<double>(b[c]) * mean[c]);
  }
  const std::vector<float> scales = spread(lines.scale.data(), shape), offsets = spread(lines.offset.data(), shape);
  const std::vector<float> bs = spread(b.data(), shape), ds = spread(d.data(), shape);
  const T* none = nullptr;
  T* nowhere = nullptr;
  each(
      shape, threads,
      [&](int64_t i, int64_t stop, int64_t e) {
        const Pair s = load(scales.data() + e), o = load(offsets.data() + e), q = load(bs.data() + e), r = load(ds.data() + e);
        for (; i < stop; i += shape.columns) {
          const Pair v = load_ahead(x + i), g = gradient_at<MASK, false, false>(gradient, none, none, nowhere, i, v, s, o);
          const Pair rest = on_line(v, q, r);
          store(of_x + i, {at::vec::fmadd(s.low, g.low, rest.low), at::vec::fmadd(s.high, g.high, rest.high)});
        }
      },
      [&](int64_t i, int64_t c) {
        const float v = static_cast<float>(x[i]);
        const float g = gradient_at<MASK, false, false>(gradient, none, none, nowhere, i, v, lines.scale[c], lines.offset[c]);
        of_x[i] = static_cast<T>(std::fma(lines.scale[c], g, on_line(v, b[c], d[c])));
      });
}

// Calls `f` with what is known as the program runs as constants: two flags, or where the mask of the ReLU comes from.
template <class F>
void chosen(bool first, bool second, F f) {
  using Yes = std::true_type;
  using No = std::false_type;
  if (first) {
    second ? f(Yes(), Yes()) : f(Yes(), No());
  } else {
    second ? f(No(), Yes()) : f(No(), No());
  }
}
template <class F>
void chosen_mask(bool relu, bool output, F f) {
  if (!relu) return f(std::integral_constant<Mask, Mask::none>());
  output ? f(std::integral_constant<Mask, Mask::output>()) : f(std::integral_constant<Mask, Mask::input>());
}

}  // namespace

// Pointers are to the first element: of activations in T, of values for each channel in float. `shortcut`, `other`, `y` and `kept` may be
// null; a sum with `other` is always kept.
#define EXPORT_FOR(NAME, T)                                                                                                        \
  extern "C" void statistics_##NAME(const T* x, int64_t places, int64_t channels, int threads, float* mean, float* variance) {     \
    statistics<T>(x, places, channels, threads, mean, variance);                                                                   \
  }                                                                                                                                \
  extern "C" void apply_##NAME(                                                                                                    \
      const T* x, int64_t places, int64_t channels, int threads, const float* weight, const float* bias, const float* mean,        \
      const float* variance, float eps, int relu, const T* shortcut, T* y) {                                                       \
    const Lines lines(weight, bias, mean, variance, eps, channels);                                                                \
    chosen(shortcut != nullptr, relu, [&](auto add, auto activate) {                                                               \
      apply<T, add.value, activate.value>(x, lines, shortcut, places, channels, threads, y);                                       \
    });                                                                                                                            \
  }                                                                                                                                \
  extern "C" void backward_sums_##NAME(                                                                                            \
      const T* x, int64_t places, int64_t channels, int threads, const float* weight, const float* bias, const float* mean,        \
      const float* variance, float eps, int relu, const T* gradient, const T* other, const T* y, float* of_bias, float* of_weight, \
      T* kept) {                                                                                                                   \
    const Lines lines(weight, bias, mean, variance, eps, channels);                                                                \
    chosen_mask(relu, y != nullptr, [&](auto mask) {                                                                               \
      chosen(other != nullptr, kept != nullptr, [&](auto add, auto keep) {                                                         \
        backward_sums<T, mask.value, add.value, keep.value>(                                                                       \
            gradient, other, y, x, lines, mean, variance, eps, places, channels, threads, of_bias, of_weight, kept);               \
      });                                                                                                                          \
    });                                                                                                                            \
  }                                                                                                                                \
  extern "C" void backward_input_##NAME(                                                                                           \
      const T* x, int64_t places, int64_t channels, int threads, const float* weight, const float* bias, const float* mean,        \
      const float* variance, float eps, int relu, const T* gradient, const float* of_bias, const float* of_weight, double count,   \
      T* of_x) {                                                                                                                   \
    const Lines lines(weight, bias, mean, variance, eps, channels);                                                                \
    chosen_mask(relu, false, [&](auto mask) {                                                                                      \
      if constexpr (mask.value != Mask::output)                                                                                    \
        backward_input<T, mask.value>(                                                                                             \
            gradient, x, lines, mean, variance, eps, of_bias, of_weight, count, places, channels, threads, of_x);                  \
    });                                                                                                                            \
  }

EXPORT_FOR(float32, float)
EXPORT_FOR(bfloat16, BFloat16)
