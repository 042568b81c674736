// The kernels of rows.h, compiled once per path.
//
// Every function here lives in the path's namespace, templates' arguments too: what the linker could merge between
// paths would run one path's instructions on another's processor.
#pragma once

#include <cmath>

#include "lanes.h"
#include "rows.h"

namespace r1 {
namespace R1_PATH {

// f with a pointer of the element type: the kernels are written once for fp32 and bf16.
template <class F>
R1_INLINE void typed(const void* p, bool bf16, F f) {
  if (bf16) f(static_cast<const uint16_t*>(p));
  else f(static_cast<const float*>(p));
}
template <class F>
R1_INLINE void typed(void* p, bool bf16, F f) {
  if (bf16) f(static_cast<uint16_t*>(p));
  else f(static_cast<float*>(p));
}
template <class T>
constexpr bool is_bf16 = sizeof(T) == 2;

template <bool ROUND>
R1_INLINE f32x16 rounded(f32x16 v) {
  if constexpr (ROUND) return round_bf16(v);
  else return v;
}

// The sum of squares by four accumulators of 16 lanes: element i goes to lane i % 16 of accumulator i / 16 % 4.
template <bool ROUND, class X>
R1_INLINE float sum_of_squares(const X* x, int64_t dim) {
  f32x16 a[4] = {};
  int64_t i = 0;
  for (; i + 64 <= dim; i += 64)
    for (int j = 0; j < 4; ++j) {
      const f32x16 v = rounded<ROUND>(load(x + i + 16 * j));
      a[j] = fma(v, v, a[j]);
    }
  for (int j = 0; j < 4; ++j)
    if (i + 16 * j < dim) {
      const f32x16 v = rounded<ROUND>(load_some(x + i + 16 * j, dim - i - 16 * j));
      a[j] = fma(v, v, a[j]);
    }
  return add_lanes((a[0] + a[1]) + (a[2] + a[3]));
}

template <class X, class W, class Y>
void rms_norm_row(const X* x, const W* weight, Y* out, int64_t dim, float eps) {
  constexpr bool narrow = is_bf16<W>;
  const float mean = sum_of_squares<(narrow && !is_bf16<X>)>(x, dim) / static_cast<float>(dim);
  const f32x16 factor = splat(1.0f / std::sqrt(mean + eps));
  each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
    const f32x16 v = rounded<(narrow && !is_bf16<X>)>(load_some(x + i, n));
    store_some(out + i, rounded<narrow>(load_some(weight + i, n) * rounded<narrow>(v * factor)), n);
  });
}

inline void rms_norm(const RmsNormArgs& a, int64_t begin, int64_t end) {
  typed(a.x, a.x_bf16, [&](auto x) {
    typed(a.weight, a.weight_bf16, [&](auto weight) {
      typed(a.out, a.out_bf16, [&](auto out) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t token = item / a.heads, head = item % a.heads;
          rms_norm_row(x + token * a.x_token + head * a.x_head, weight,
                       out + token * a.out_token + head * a.out_head, a.dim, a.eps);
        }
      });
    });
  });
}

inline void rotary(const RotaryArgs& a, int64_t begin, int64_t end) {
  typed(a.cos, a.table_bf16, [&](auto cos) {
    auto sin = static_cast<decltype(cos)>(a.sin);
    for (int64_t token = begin; token < end; ++token) {
      const float position = static_cast<float>(a.positions[token]);
      for (int64_t i = 0; i < a.half; ++i) {
        // The angle is a float, as the model was trained with; its sine is the true one, rounded once.
        const double angle = position * a.frequencies[i];
        const float c = static_cast<float>(std::cos(angle)) * a.factor;
        const float s = static_cast<float>(std::sin(angle)) * a.factor;
        const int64_t at = token * 2 * a.half + i;
        put(cos + at, c);
        put(cos + at + a.half, c);
        put(sin + at, -s);
        put(sin + at + a.half, s);
      }
    }
  });
}

template <class X, class C, class Y>
void rope_head(const X* x, const C* cos, const C* sin, Y* out, int64_t dim, int64_t rotated) {
  constexpr bool narrow = is_bf16<C>;
  constexpr bool narrows = narrow && !is_bf16<X>;
  const int64_t half = rotated / 2;
  const auto turn = [&](f32x16 v, f32x16 other, int64_t i, int64_t n) R1_ALWAYS {
    return rounded<narrow>(rounded<narrow>(v * load_some(cos + i, n)) +
                           rounded<narrow>(other * load_some(sin + i, n)));
  };
  each_16(half, [&](int64_t i, int64_t n) R1_ALWAYS {
    const f32x16 low = rounded<narrows>(load_some(x + i, n));
    const f32x16 high = rounded<narrows>(load_some(x + half + i, n));
    const f32x16 turned = turn(low, high, i, n);
    store_some(out + half + i, turn(high, low, half + i, n), n);
    store_some(out + i, turned, n);
  });
  each_16(dim - rotated, [&](int64_t i, int64_t n) R1_ALWAYS {
    store_some(out + rotated + i, rounded<narrows>(load_some(x + rotated + i, n)), n);
  });
}

inline void rope(const RopeArgs& a, int64_t begin, int64_t end) {
  typed(a.x, a.x_bf16, [&](auto x) {
    typed(a.cos, a.table_bf16, [&](auto cos) {
      typed(a.out, a.out_bf16, [&](auto out) {
        const auto sin = static_cast<decltype(cos)>(a.sin);
        for (int64_t token = begin; token < end; ++token)
          for (int64_t head = 0; head < a.heads; ++head)
            rope_head(x + token * a.x_token + head * a.x_head, cos + token * a.rotated, sin + token * a.rotated,
                      out + token * a.out_token + head * a.out_head, a.dim, a.rotated);
      });
    });
  });
}

R1_INLINE f32x16 silu(f32x16 x) { return x / (exp(-x) + 1.0f); }

// 0.5 x (1 + tanh(u)) is x / (1 + e^-2u), which keeps its precision where tanh is near -1.
R1_INLINE f32x16 gelu_tanh(f32x16 x) {
  const f32x16 u = 0.7978845608f * (x + 0.044715f * (x * x * x));
  return x / (exp(-2.0f * u) + 1.0f);
}

template <class X, class Y>
void gated_row(Gate gate, const X* x, const X* up, Y* out, int64_t dim) {
  constexpr bool narrow = is_bf16<X> && is_bf16<Y>;
  const auto run = [&](auto activation) R1_ALWAYS {
    each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
      store_some(out + i, rounded<narrow>(activation(load_some(x + i, n))) * load_some(up + i, n), n);
    });
  };
  if (gate == Gate::silu) run([](f32x16 v) R1_ALWAYS { return silu(v); });
  else run([](f32x16 v) R1_ALWAYS { return gelu_tanh(v); });
}

inline void gated(const GatedArgs& a, int64_t begin, int64_t end) {
  typed(a.x, a.in_bf16, [&](auto x) {
    typed(a.out, a.out_bf16, [&](auto out) {
      const auto up = static_cast<decltype(x)>(a.up);
      for (int64_t row = begin; row < end; ++row)
        gated_row(a.gate, x + row * a.x_row, up + row * a.up_row, out + row * a.out_row, a.dim);
    });
  });
}

template <class X, class V, class Y>
void add_row(const X* x, const V* y, Y* out, float scale, int64_t dim) {
  constexpr bool narrow = is_bf16<X> || is_bf16<V>;
  each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
    store_some(out + i, load_some(x + i, n) + rounded<narrow>(load_some(y + i, n) * scale), n);
  });
}

inline void add(const AddArgs& a, int64_t begin, int64_t end) {
  typed(a.x, a.x_bf16, [&](auto x) {
    typed(a.y, a.y_bf16, [&](auto y) {
      typed(a.out, a.out_bf16, [&](auto out) {
        for (int64_t row = begin; row < end; ++row)
          add_row(x + row * a.x_row, y + row * a.y_row, out + row * a.out_row, a.scale, a.dim);
      });
    });
  });
}

template <class X, class Y>
void copy_row(const X* x, Y* out, float scale, int64_t dim) {
  constexpr bool narrow = is_bf16<Y> && !is_bf16<X>;
  each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
    store_some(out + i, rounded<narrow>(load_some(x + i, n)) * scale, n);
  });
}

inline void copy(const CopyArgs& a, int64_t begin, int64_t end) {
  typed(a.x, a.x_bf16, [&](auto x) {
    typed(a.out, a.out_bf16, [&](auto out) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t from = a.index != nullptr ? a.index[row] : row;
        copy_row(x + from * a.x_row, out + row * a.out_row, a.scale, a.dim);
      }
    });
  });
}

// One head -> int8 codes and their scale, largest magnitude / 127. What holds an infinity or a NaN reads back as NaN.
template <class X>
float quantise_head(const X* x, int8_t* codes, int64_t dim) {
  f32x16 most = {}, bad = {};
  each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
    const f32x16 v = load_some(x + i, n);
    most = max(v > 0.0f ? v : -v, most);
    bad += v - v;  // 0, or NaN
  });
  const float scale = most_of(most) / 127.0f;
  const bool finite = add_lanes(bad) == 0.0f;
  for (int64_t i = 0; i < dim; ++i) {
    float code = finite && scale > 0.0f ? std::nearbyint(get(x + i) / scale) : 0.0f;
    code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;  // a scale that is denormal is coarse
    codes[i] = static_cast<int8_t>(code);
  }
  return finite ? scale : std::numeric_limits<float>::quiet_NaN();
}

// `heads` heads of one token to `row`, part by part: codes at `at`, scales from number `scale` on.
template <class X>
void write_heads(const X* x, int64_t stride, const RowLayout& layout, uint8_t* row, int64_t at, int64_t scale,
                 int64_t dim) {
  for (int64_t head = 0; head < layout.heads; ++head, x += stride) {
    uint8_t* to = row + at + head * dim * layout.element;
    if (layout.storage == Storage::fp32) {
      copy_row(x, reinterpret_cast<float*>(to), 1.0f, dim);
    } else if (layout.storage == Storage::bf16) {
      copy_row(x, reinterpret_cast<uint16_t*>(to), 1.0f, dim);
    } else {
      const float step = quantise_head(x, reinterpret_cast<int8_t*>(to), dim);
      std::memcpy(row + layout.scales + 4 * (scale + head), &step, 4);
    }
  }
}

inline void kv_write(const KvWriteArgs& a, int64_t begin, int64_t end) {
  const RowLayout& layout = a.layout;
  typed(a.k, a.in_bf16, [&](auto k) {
    const auto v = static_cast<decltype(k)>(a.v);
    for (int64_t token = begin; token < end; ++token) {
      if (a.slots[token] < 0) continue;
      uint8_t* row = a.pool + a.slots[token] * layout.bytes;
      write_heads(k + token * a.k_token, a.k_head, layout, row, 0, 0, layout.key_dim);
      if (!layout.shared)
        write_heads(v + token * a.v_token, a.v_head, layout, row, layout.values, layout.heads, layout.value_dim);
    }
  });
}

inline RowKernels row_kernels() { return {rms_norm, rotary, rope, gated, add, copy, kv_write}; }

}  // namespace R1_PATH
}  // namespace r1
