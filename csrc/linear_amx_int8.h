// On the AMX path, products with 8-bit weights whose rows have one scale each. Such a product is a sum of integers times
// two scales, so it needs no float step before its end, and integers have the same sum in any order: few rows go through
// VNNI and many through tiles, with the same bits. A row is rounded to 16 bits, 256 * high + low, which two products of
// bytes give exactly:
//   out = (float(dot(high)) * 256 + float(dot(low))) * (weight scale * row scale)
#pragma once

#include "amx.h"
#include "lanes.h"
#include "linear_avx512.h"

namespace r1 {
namespace R1_PATH {

constexpr int64_t kStepK = 64;       // k of a tile of bytes
constexpr int64_t kPart = 1024;      // bytes of one
constexpr int64_t kFewRows = 4;      // below, VNNI reads the weights faster
constexpr int64_t kNearK = 512, kFarK = 2048;  // k that are gone through for all columns: in the first cache, or the second
constexpr float kLargest16 = 32512.0f;  // 127 * 256: high is at most 127

// Prepared rows: in tiles, 16 rows' high bytes of 64 k and then their low bytes; else row by row, k high bytes, k low ones.
struct Bytes {
  const uint8_t* x;
  int64_t stride, step, low, below;  // bytes to the next row, the next 64 k, the low bytes, the next 16 rows
};
R1_INLINE Bytes bytes_of(const void* x, int64_t first, int64_t k, bool tiled) {
  const auto* p = static_cast<const uint8_t*>(x);
  if (tiled) return {p + first * 2 * k, 64, 2 * kPart, kPart, kTileRows * 2 * k};
  return {p + first * 2 * k, 2 * k, 64, k, kTileRows * 2 * k};
}

// A row -> its bytes; its scale and the sum of its high bytes, then the sum of its low ones.
template <class T>
R1_INLINE void split_row(const T* x, int64_t count, int64_t padded, uint8_t* high, uint8_t* low, int64_t step, Act* act) {
  u32x16 largest = {};
  each_16(count, [&](int64_t i, int64_t n) R1_ALWAYS {
    const u32x16 bits = reinterpret_cast<u32x16>(load_some(x + i, n)) & 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  });
  const uint32_t top = max(largest);
  float amax;
  std::memcpy(&amax, &top, 4);
  const bool none = !(amax >= 1e-30f) || top >= 0x7F800000u;  // as `quantise` in linear_generic.h has it
  const float inverse = none ? 0.0f : kLargest16 / amax;
  constexpr float kMagic = 12582912.0f;
  i32x16 high_sum = {}, low_sum = {};
  for (int64_t i = 0; i < padded; i += 16) {
    i32x16 code = {}, upper = {};
    if (i < count && !none) {
      code = reinterpret_cast<i32x16>(load_some(x + i, std::min<int64_t>(16, count - i)) * inverse + kMagic) - 0x4B400000;
      upper = (code + 128) >> 8;
      code -= upper * 256;
    }
    high_sum += upper;
    low_sum += code;
    const int64_t at = i / kStepK * step + i % kStepK;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + at), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(upper)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low + at), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(code)));
  }
  act[0] = {none ? (top >= 0x7F800000u ? amax : 0.0f) : amax / kLargest16, sum(high_sum)};
  act[1] = {0.0f, sum(low_sum)};
}

template <class T>
R1_INLINE void split_rows(const PrepareArgs& a, int64_t begin, int64_t end) {
  const int64_t k = a.format.padded_k(a.k);
  const Bytes b = bytes_of(a.codes, 0, k, a.tiled);
  for (int64_t row = begin; row < end; ++row) {
    auto* high = const_cast<uint8_t*>(b.x) + row / kTileRows * b.below + row % kTileRows * b.stride;
    split_row(static_cast<const T*>(a.x) + row * a.ldx, a.k, k, high, high + b.low, b.step, a.act + 2 * row);
  }
}

// Where a panel's codes of 64 k number s stand.
R1_INLINE const uint8_t* codes_of(const uint8_t* panel, const Format& f, int64_t s) {
  const int64_t per = f.group / kStepK;
  if (per > 0) return panel + s / per * f.group_bytes() + s % per * (kStepK / 4) * kUnit;
  return panel;
}

// Products of up to three rows, (high, low) of each, with a panel: dots (2 * ROWS, 64).
template <int ROWS>
void few_rows(const Bytes& b, const uint8_t* panel, const Format& f, int64_t k, int32_t* dots) {
  __m512i sum[2 * ROWS][4];
  for (auto& row : sum)
    for (auto& part : row) part = _mm512_setzero_si512();
  for (int64_t s = 0; s < k / kStepK; ++s) {
    const uint8_t* w = codes_of(panel, f, s);
    const auto* x = reinterpret_cast<const int8_t*>(b.x + s * b.step);
#pragma GCC unroll 4
    for (int unit = 0; unit < kStepK / 4; ++unit, w += kUnit) {
      __m512i v[4];
      for (int c = 0; c < 4; ++c) v[c] = _mm512_load_si512(w + 64 * c);
      fetch<true>(w);
      for (int r = 0; r < 2 * ROWS; ++r) {
        const __m512i four = broadcast(x + r / 2 * b.stride + r % 2 * b.low + 4 * unit);
        for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], v[c], four);
      }
    }
  }
  for (int r = 0; r < 2 * ROWS; ++r)
    for (int c = 0; c < 4; ++c) _mm512_storeu_si512(dots + kPanel * r + 16 * c, sum[r][c]);
}

// Sums are kept by tiles: (row tiles, 2 pairs of 16 columns, high and low, 2, 16 rows, 16 columns).
constexpr int64_t kTileDots = 256;

// 16 rows' high and low bytes by two times 16 columns: registers 0 to 3.
R1_INLINE void multiply_bytes(const Bytes& b, const uint8_t* panel, const Format& f, int64_t first, int64_t last, int c,
                              bool ahead, int32_t* dots) {
  if (first == 0) {
    R1_TILE_LOAD(0, kZeros, 64); R1_TILE_LOAD(1, kZeros, 64); R1_TILE_LOAD(2, kZeros, 64); R1_TILE_LOAD(3, kZeros, 64);
  } else {
    R1_TILE_LOAD(0, dots, 64); R1_TILE_LOAD(1, dots + kTileDots, 64);
    R1_TILE_LOAD(2, dots + 2 * kTileDots, 64); R1_TILE_LOAD(3, dots + 3 * kTileDots, 64);
  }
  for (int64_t s = first; s < last; ++s) {
    const uint8_t* w = codes_of(panel, f, s) + 128 * c;
    const uint8_t* x = b.x + s * b.step;
    if (ahead)
      for (int i = 0; i < 64; ++i) _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + 64 * i), _MM_HINT_T0);
    R1_TILE_LOAD(4, x, b.stride);
    R1_TILE_LOAD(6, w, kUnit); R1_TILE_DOT_BYTES(0, 4, 6);
    R1_TILE_LOAD(7, w + 64, kUnit); R1_TILE_DOT_BYTES(1, 4, 7);
    R1_TILE_LOAD(5, x + b.low, b.stride); R1_TILE_DOT_BYTES(2, 5, 6);
    R1_TILE_DOT_BYTES(3, 5, 7);
  }
  R1_TILE_STORE(0, dots, 64); R1_TILE_STORE(1, dots + kTileDots, 64);
  R1_TILE_STORE(2, dots + 2 * kTileDots, 64); R1_TILE_STORE(3, dots + 3 * kTileDots, 64);
}

// One row's products with a panel -> its results. `dots(part, c)`: of 16 columns.
template <class T, class Dots>
R1_INLINE void write_row(const LinearArgs& a, int64_t panel, int64_t row, const f32x16 (&scales)[4], Dots dots) {
  const int64_t columns = std::min(kPanel, a.weight.n - panel * kPanel);
  T* out = static_cast<T*>(a.out) + row * a.ldo + panel * kPanel;
  const Act* act = a.act + 2 * row;
  for (int c = 0; c < 4 && 16 * c < columns; ++c) {
    const int64_t many = std::min<int64_t>(16, columns - 16 * c);
    const auto part = [&](int number) R1_ALWAYS {  // codes are 128 too large
      return __builtin_convertvector(dots(number, c) - 128 * act[number].sum, f32x16);
    };
    f32x16 v = fma(part(0), splat(256.0f), part(1)) * (scales[c] * act[0].scale);
    if (a.bias != nullptr) v += load_some(a.bias + panel * kPanel + 16 * c, many);
    store_some(out + 16 * c, v, many);
  }
}

template <class T>
void linear_bytes(const LinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  const int64_t rows = row_block(a.m, a.weight, a.row_tile), blocks = row_blocks(a.m, a.weight, a.row_tile);
  const int64_t k = f.padded_k(a.weight.k), steps = k / kStepK;
  alignas(64) int32_t dots[kTiledBlock / kTileRows * 8 * kTileDots];
  TileRegisters registers;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks, first = item % blocks * rows, count = std::min(rows, a.m - first);
    const uint8_t* from = a.weight.panel(panel);
    const Bytes b = bytes_of(a.x, first, k, a.tiled);
    f32x16 scales[4];
    for (int c = 0; c < 4; ++c) {
      const uint8_t* at = from + f.group / 4 * kUnit;
      scales[c] = reinterpret_cast<f32x16>(f.wide ? load_scales<true>(at, c) : load_scales<false>(at, c));
    }
    const auto of = [](const int32_t* p) R1_ALWAYS { i32x16 v; std::memcpy(&v, p, sizeof v); return v; };
    if (count < kFewRows) {
      (count == 1 ? few_rows<1> : count == 2 ? few_rows<2> : few_rows<3>)(b, from, f, k, dots);
      for (int64_t r = 0; r < count; ++r)
        write_row<T>(a, panel, first + r, scales, [&](int part, int c) R1_ALWAYS { return of(dots + (2 * r + part) * kPanel + 16 * c); });
      continue;
    }
    const int64_t tiles = (count + kTileRows - 1) / kTileRows, reach = (tiles == 1 ? kNearK : kFarK) / kStepK;
    for (int64_t s = 0; s < steps; s += reach)
      for (int64_t t = 0; t < tiles; ++t) {
        Bytes now = b;
        now.x += t * b.below;
        for (int c = 0; c < 2; ++c)
          multiply_bytes(now, from, f, s, std::min(steps, s + reach), c, t == 0 && c == 0, dots + (2 * t + c) * 4 * kTileDots);
        if (s + reach < steps) continue;
        for (int64_t r = 0; r < std::min(count - t * kTileRows, kTileRows); ++r)
          write_row<T>(a, panel, first + t * kTileRows + r, scales, [&](int part, int c) R1_ALWAYS {
            return of(dots + ((2 * t + c / 2) * 4 + 2 * part + c % 2) * kTileDots + 16 * r);
          });
      }
  }
}

}  // namespace R1_PATH
}  // namespace r1
