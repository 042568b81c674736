// The truth of the packed product, in plain C++: one output element at a time, in the order that every path keeps.
//
// An element of a quantised product is a sum over groups, ascending: sum += float(dot - offset * sum(codes)) *
// (weight scale * activation scale), then sum += minimum * (activation scale * sum(codes)). The integer part is exact
// in any order, so a path may cut it as it likes. Where scales are multiples of a row's own, that comes last (finish). bf16
// and fp32 products add one unit after the other.
#pragma once

#include <algorithm>

#include "linear.h"
#include "vector.h"

namespace r1 {
namespace R1_PATH {

R1_INLINE float half(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return static_cast<float>(value);
}

// Scale number `i` of a group; the minima stand behind the 64 scales.
R1_INLINE float scale_at(const uint8_t* scales, const Format& f, int64_t i) {
  if (f.wide) {
    float value;
    std::memcpy(&value, scales + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, scales + 2 * i, 2);
  return half(bits);
}

// Adds column c's dot products with one row to *sum, for the generic path and for what other paths leave to it.
inline float column(const LinearArgs& a, const uint8_t* panel, int64_t c, int64_t row) {
  const Format& f = a.weight.format;
  const int64_t k = f.padded_k(a.weight.k);
  float total = 0;
  if (f.kind == Kind::fp32) {
    const float* x = static_cast<const float*>(a.x) + row * a.ldx;
    for (int64_t i = 0; i < k; ++i) {
      float w;
      std::memcpy(&w, panel + i * kUnit + c * 4, 4);
      total += x[i] * w;
    }
    return total;
  }
  if (f.kind == Kind::bf16) {
    const uint16_t* x = static_cast<const uint16_t*>(a.x) + row * k;
    for (int64_t i = 0; i < k; ++i) {
      uint16_t w;
      std::memcpy(&w, panel + i / 2 * kUnit + c * 4 + i % 2 * 2, 2);
      total += from_bf16(x[i]) * from_bf16(w);
    }
    return total;
  }
  const int64_t groups = k / f.group;
  const int8_t* x = static_cast<const int8_t*>(a.x) + row * k;
  const Act* act = a.act + row * groups;
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* codes = panel + g * f.group_bytes();
    int32_t dot = -f.offset() * act[g].sum;
    for (int64_t i = 0; i < f.group; ++i) {
      const int32_t value = x[g * f.group + i];
      if (f.kind == Kind::int8) {
        dot += value * codes[i / 4 * kUnit + c * 4 + i % 4];
      } else {
        const uint8_t byte = codes[i / 8 * kUnit + c * 4 + i % 4];
        dot += value * (i % 8 < 4 ? byte & 15 : byte >> 4);
      }
    }
    const uint8_t* scales = codes + f.group / f.unit_k() * kUnit;
    total += static_cast<float>(dot) * (scale_at(scales, f, c) * act[g].scale);
    if (f.minima) total += scale_at(scales, f, kPanel + c) * (act[g].scale * static_cast<float>(act[g].sum));
  }
  return total;
}

// Puts a row's 64 sums where they belong: bias, number format, and the columns that exist.
R1_INLINE void finish(const LinearArgs& a, int64_t panel, int64_t row, float* sums) {
  const int64_t first = panel * kPanel;
  const int64_t count = std::min(kPanel, a.weight.n - first);
  if (a.weight.format.multiples()) {
    const float* scales = a.weight.row_scales(a.weight.panel(panel));
    for (int64_t c = 0; c < kPanel; ++c) sums[c] *= scales[c];
  }
  if (a.bias != nullptr)
    for (int64_t c = 0; c < count; ++c) sums[c] += a.bias[first + c];
  if (a.out_bf16) {
    uint16_t* out = static_cast<uint16_t*>(a.out) + row * a.ldo + first;
    if (count == kPanel)
      for (int64_t c = 0; c < kPanel; c += 16) store(out + c, load(sums + c));
    else
      for (int64_t c = 0; c < count; ++c) out[c] = to_bf16(sums[c]);
  } else {
    std::memcpy(static_cast<float*>(a.out) + row * a.ldo + first, sums, static_cast<size_t>(count) * 4);
  }
}

inline void linear_generic(const LinearArgs& a, int64_t begin, int64_t end) {
  const int64_t rows = row_block(a.m, a.weight, a.row_tile), blocks = row_blocks(a.m, a.weight, a.row_tile);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks;
    const int64_t first = item % blocks * rows;
    for (int64_t row = first; row < std::min(a.m, first + rows); ++row) {
      float sums[kPanel];
      for (int64_t c = 0; c < kPanel; ++c) sums[c] = column(a, a.weight.panel(panel), c, row);
      finish(a, panel, row, sums);
    }
  }
}

// A group of a row -> int8 codes: the largest magnitude becomes 127, the rest is rounded to nearest, ties to even.
// Groups whose largest magnitude is below 1e-30 are zeros; with an infinity or a NaN in it the scale is that, and what
// the product makes of it is a NaN.
template <class T>
R1_INLINE Act quantise(const T* x, int64_t count, int64_t group, int8_t* codes) {
  u32x16 largest = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const f32x16 v = load(x + i);
    const u32x16 bits = reinterpret_cast<u32x16>(v) & 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  uint32_t top = max(largest);
  for (; i < count; ++i) {
    const float v = get(x + i);
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    top = std::max(top, bits & 0x7FFFFFFFu);
  }
  float amax;
  std::memcpy(&amax, &top, 4);
  if (!(amax >= 1e-30f) || top >= 0x7F800000u) {
    std::memset(codes, 0, static_cast<size_t>(group));
    return {top >= 0x7F800000u ? amax : 0.0f, 0};
  }
  const float inverse = 127.0f / amax;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr int32_t kMagicBits = 0x4B400000;
  i32x16 sums = {};
  for (i = 0; i + 16 <= count; i += 16) {
    const f32x16 shifted = load(x + i) * inverse + kMagic;
    const i32x16 code = reinterpret_cast<i32x16>(shifted) - kMagicBits;
    sums += code;
    const i8x16 narrow = __builtin_convertvector(code, i8x16);
    std::memcpy(codes + i, &narrow, 16);
  }
  int32_t total = sum(sums);
  for (; i < count; ++i) {
    const float shifted = get(x + i) * inverse + kMagic;
    int32_t code;
    std::memcpy(&code, &shifted, 4);
    code -= kMagicBits;
    total += code;
    codes[i] = static_cast<int8_t>(code);
  }
  if (i < group) std::memset(codes + i, 0, static_cast<size_t>(group - i));
  return {amax / 127.0f, total};
}

template <class T>
R1_INLINE void prepare_rows(const PrepareArgs& a, int64_t begin, int64_t end) {
  const int64_t k = a.format.padded_k(a.k);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.ldx;
    if (a.to_bf16) {
      uint16_t* out = static_cast<uint16_t*>(a.codes) + row * k;
      int64_t i = 0;
      for (; i + 16 <= a.k; i += 16) store(out + i, load(x + i));
      for (; i < a.k; ++i) out[i] = to_bf16(get(x + i));
      for (; i < k; ++i) out[i] = 0;
      continue;
    }
    const int64_t group = a.format.group;
    int8_t* codes = static_cast<int8_t*>(a.codes) + row * k;
    for (int64_t g = 0; g < k / group; ++g) {
      const int64_t count = std::min(group, a.k - g * group);
      a.act[row * (k / group) + g] = quantise(x + g * group, count, group, codes + g * group);
    }
  }
}

inline void prepare(const PrepareArgs& a, int64_t begin, int64_t end) {
  if (a.x_bf16) prepare_rows<uint16_t>(a, begin, end);
  else prepare_rows<float>(a, begin, end);
}

}  // namespace R1_PATH
}  // namespace r1
