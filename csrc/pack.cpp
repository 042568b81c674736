// Into the packed layout, and rows back out of it: plain C++, once per model and once per looked-up token.
#define R1_PATH packing
#include <algorithm>

#include "linear_generic.h"

namespace r1 {
namespace {

uint8_t* cell(uint8_t* panel, const Format& f, int64_t k, int64_t c) {
  const int64_t unit = f.unit_k();
  return panel + k / f.step_k() * f.group_bytes() + k % f.step_k() / unit * kUnit + c * 4;
}

void put_scale(uint8_t* at, const Format& f, int64_t i, float value) {
  if (f.wide) {
    std::memcpy(at + 4 * i, &value, 4);
  } else {
    const _Float16 narrow = static_cast<_Float16>(value);
    std::memcpy(at + 2 * i, &narrow, 2);
  }
}

void pack_codes(const PackArgs& a, int64_t row, uint8_t* panel, int64_t c) {
  const Format& f = a.weight.format;
  const int64_t k = a.weight.k, groups = (k + f.group - 1) / f.group;
  const uint8_t* codes = static_cast<const uint8_t*>(a.values) + row * k;
  for (int64_t i = 0; i < k; ++i) {
    uint8_t* at = cell(panel, f, i, c) + i % 4;
    if (f.kind == Kind::int8) *at = codes[i];
    else if (i % 8 < 4) *at = static_cast<uint8_t>((*at & 0xF0) | (codes[i] & 15));
    else *at = static_cast<uint8_t>((*at & 0x0F) | (codes[i] << 4));
  }
  for (int64_t g = 0; g < groups; ++g) {
    uint8_t* scales = panel + (g + 1) * f.group_bytes() - f.scale_bytes();
    put_scale(scales, f, c, a.scales[row * groups + g]);
    if (f.minima) put_scale(scales, f, kPanel + c, a.minima[row * groups + g]);
  }
  if (f.multiples()) std::memcpy(panel + a.weight.panel_bytes() - f.row_bytes() + 4 * c, a.row_scales + row, 4);
}

}  // namespace

void pack(const PackArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  const int64_t k = a.weight.k;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = a.first + row, c = n % kPanel;
    uint8_t* panel = a.data + n / kPanel * a.weight.panel_bytes();
    if (f.kind == Kind::fp32) {
      const float* values = static_cast<const float*>(a.values) + row * k;
      for (int64_t i = 0; i < k; ++i) std::memcpy(panel + i * kUnit + c * 4, values + i, 4);
    } else if (f.kind == Kind::bf16) {
      const uint16_t* values = static_cast<const uint16_t*>(a.values) + row * k;
      for (int64_t i = 0; i < k; ++i) std::memcpy(panel + i / 2 * kUnit + c * 4 + i % 2 * 2, values + i, 2);
    } else {
      pack_codes(a, row, panel, c);
    }
  }
}

namespace {

void put_value(float* at, float value) { *at = value; }
void put_value(uint16_t* at, float value) { *at = packing::to_bf16(value); }

// Column c of a panel of codes -> out (k): what one of 4 bits can be is worked out once for its group.
template <class T>
void unpack_codes(const Weight& w, const uint8_t* panel, int64_t c, T* out) {
  const Format& f = w.format;
  const int64_t unit = f.unit_k();
  const float unit_scale = f.multiples() ? w.row_scales(panel)[c] : 1.0f;
  T values[128];
  for (int64_t first = 0; first < w.k; first += f.group, panel += f.group_bytes()) {
    const uint8_t* scales = panel + f.group / unit * kUnit;
    const float scale = packing::scale_at(scales, f, c);
    const float minimum = f.minima ? packing::scale_at(scales, f, kPanel + c) : 0.0f;
    const uint8_t* at = panel + c * 4;
    const auto value = [&](int32_t code) {
      const float product = static_cast<float>(code - f.offset()) * scale * unit_scale;
      return f.minima ? product + minimum : product;
    };
    if (f.kind == Kind::int4) {
      T known[16];
      for (int32_t code = 0; code < 16; ++code) put_value(known + code, value(code));
      for (int64_t i = 0; i < f.group; i += 8, at += kUnit)
        for (int64_t b = 0; b < 4; ++b) {
          values[i + b] = known[at[b] & 15];
          values[i + 4 + b] = known[at[b] >> 4];
        }
    } else {
      for (int64_t i = 0; i < f.group; i += 4, at += kUnit)
        for (int64_t b = 0; b < 4; ++b) put_value(values + i + b, value(at[b]));
    }
    std::copy_n(values, std::min<int64_t>(f.group, w.k - first), out + first);
  }
}

}  // namespace

void unpack(const UnpackArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  const int64_t k = a.weight.k;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = a.ids[row], c = n % kPanel;
    const uint8_t* panel = a.weight.panel(n / kPanel);
    auto* halves = static_cast<uint16_t*>(a.out) + row * k;
    auto* floats = static_cast<float*>(a.out) + row * k;
    if (f.group > 0) {
      if (a.out_bf16) unpack_codes(a.weight, panel, c, halves);
      else unpack_codes(a.weight, panel, c, floats);
      continue;
    }
    for (int64_t i = 0; i < k; ++i) {
      float value;
      if (f.kind == Kind::fp32) {
        std::memcpy(&value, panel + i * kUnit + c * 4, 4);
      } else {
        uint16_t bits;
        std::memcpy(&bits, panel + i / 2 * kUnit + c * 4 + i % 2 * 2, 2);
        value = packing::from_bf16(bits);
      }
      if (a.out_bf16) put_value(halves + i, value);
      else put_value(floats + i, value);
    }
  }
}

}  // namespace r1
