// On the AMX path, products with 8-bit weights whose rows have one scale each. Such a product is a sum of integers times
// two scales, so it needs no float step before its end, and integers have the same sum in any order: few rows go through
// VNNI and many through tiles, with the same bits. A row is rounded to 16 bits, 256 * high + low, which two products of
// bytes give exactly:
//   out = (float(dot(high)) * 256 + float(dot(low))) * (weight scale * row scale)
#pragma once

#include "amx.h"
#include "lanes.h"
#include "linear_avx512.h"
#include "rows_impl.h"

namespace r1 {
namespace R1_PATH {

constexpr int64_t kStepK = 64;       // k of a tile of bytes
constexpr int64_t kPart = 1024;      // bytes of one
constexpr int64_t kFewRows = 4;      // below, VNNI reads the weights faster
// Steps that are gone through for all rows and columns: 32 columns of them stay in the first cache; of few rows as much as
// fetch_codes asks for ahead, so that each pass can ask for its share.
constexpr int64_t kReach = 512 / kStepK, kNearReach = 2, kNearTiles = 2;
constexpr float kLargest16 = 32512.0f;  // 127 * 256: high is at most 127

// Asks for what follows a line of a panel by 8 to 16 KiB, each line once. Lines of two pages are asked for in turns: the
// processor follows a few lines ahead in each page that it sees being read, and so has twice as many on their way.
R1_INLINE void fetch_codes(const uint8_t* line) {
  constexpr uintptr_t kPage = 4096;
  const auto at = reinterpret_cast<uintptr_t>(line), number = at / 64 % (2 * kPage / 64);
  const uintptr_t next = at / (2 * kPage) * (2 * kPage) + 2 * kPage + number % 2 * kPage + number / 2 * 64;
  _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
}

// Prepared rows: in tiles, 16 rows' high bytes of 64 k and then their low bytes (of up to 8 rows in all, both in one tile);
// else row by row, k high bytes, k low ones.
struct Bytes {
  const uint8_t* x;
  int64_t stride, step, low, below;  // bytes to the next row, the next 64 k, the low bytes, the next 16 rows
};
R1_INLINE bool in_one_tile(int64_t m, bool tiled) { return tiled && m <= kTileRows / 2; }
R1_INLINE Bytes bytes_of(const void* x, int64_t m, int64_t first, int64_t k, bool tiled) {
  const auto* p = static_cast<const uint8_t*>(x);
  if (in_one_tile(m, tiled)) return {p + first * 64, 64, kPart, kPart / 2, 0};
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
  const Bytes b = bytes_of(a.codes, a.m, 0, k, a.tiled);
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
      for (int i = 0; i < 4; ++i) fetch_codes(w + 64 * i);
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

// 16 rows' high and low bytes by two times 16 columns: registers 0 to 3. Pass number `pass` over these steps asks for its
// `asks` times 4 of each step's 64 lines ahead.
R1_INLINE void multiply_bytes(const Bytes& b, const uint8_t* panel, const Format& f, int64_t first, int64_t last, int c,
                              int64_t pass, int64_t asks, int32_t* dots) {
  if (first == 0) {
    R1_TILE_LOAD(0, kZeros, 64); R1_TILE_LOAD(1, kZeros, 64); R1_TILE_LOAD(2, kZeros, 64); R1_TILE_LOAD(3, kZeros, 64);
  } else {
    R1_TILE_LOAD(0, dots, 64); R1_TILE_LOAD(1, dots + kTileDots, 64);
    R1_TILE_LOAD(2, dots + 2 * kTileDots, 64); R1_TILE_LOAD(3, dots + 3 * kTileDots, 64);
  }
  for (int64_t s = first; s < last; ++s) {
    const uint8_t* w = codes_of(panel, f, s) + 128 * c;
    const uint8_t* x = b.x + s * b.step;
    const auto ask = [&](int quarter) R1_ALWAYS {
      for (int64_t i = asks * quarter; i < asks * (quarter + 1); ++i) fetch_codes(w - 128 * c + 64 * (4 * asks * pass + i));
    };
    ask(0);
    R1_TILE_LOAD(4, x, b.stride);
    R1_TILE_LOAD(6, w, kUnit); R1_TILE_DOT_BYTES(0, 4, 6);
    ask(1);
    R1_TILE_LOAD(7, w + 64, kUnit); R1_TILE_DOT_BYTES(1, 4, 7);
    ask(2);
    R1_TILE_LOAD(5, x + b.low, b.stride); R1_TILE_DOT_BYTES(2, 5, 6);
    ask(3);
    R1_TILE_DOT_BYTES(3, 5, 7);
  }
  R1_TILE_STORE(0, dots, 64); R1_TILE_STORE(1, dots + kTileDots, 64);
  R1_TILE_STORE(2, dots + 2 * kTileDots, 64); R1_TILE_STORE(3, dots + 3 * kTileDots, 64);
}

// Up to 8 rows, (high, low) of all in one tile, with a panel: dots (4 times 16 columns, 8 high and 8 low sums, 16).
inline void multiply_eight(const Bytes& b, const uint8_t* panel, const Format& f, int64_t steps, int32_t* dots) {
  R1_TILE_LOAD(0, kZeros, 64); R1_TILE_LOAD(1, kZeros, 64); R1_TILE_LOAD(2, kZeros, 64); R1_TILE_LOAD(3, kZeros, 64);
  for (int64_t s = 0; s < steps; ++s) {
    const uint8_t* w = codes_of(panel, f, s);
    const auto ask = [&](int quarter) R1_ALWAYS {
      for (int i = 16 * quarter; i < 16 * quarter + 16; ++i) fetch_codes(w + 64 * i);
    };
    R1_TILE_LOAD(4, b.x + s * b.step, b.stride);
    ask(0);
    R1_TILE_LOAD(5, w, kUnit); R1_TILE_DOT_BYTES(0, 4, 5);
    ask(1);
    R1_TILE_LOAD(6, w + 64, kUnit); R1_TILE_DOT_BYTES(1, 4, 6);
    ask(2);
    R1_TILE_LOAD(7, w + 128, kUnit); R1_TILE_DOT_BYTES(2, 4, 7);
    ask(3);
    R1_TILE_LOAD(5, w + 192, kUnit); R1_TILE_DOT_BYTES(3, 4, 5);
  }
  R1_TILE_STORE(0, dots, 64); R1_TILE_STORE(1, dots + kTileDots, 64);
  R1_TILE_STORE(2, dots + 2 * kTileDots, 64); R1_TILE_STORE(3, dots + 3 * kTileDots, 64);
}

R1_INLINE f32x16 gate_of(const LinearArgs& a, f32x16 x) {
  return a.gate == static_cast<int32_t>(Gate::silu) ? silu(x) : gelu_tanh(x);
}

// The results of an item from its sums of integers. `dots(p, part, r, c)`: 16 columns of row r with panel p.
template <class Dots>
struct ByteResults {
  const LinearArgs& a;
  const Panels& panels;
  const f32x16 (&scales)[4][4];
  int64_t first;  // row
  Dots dots;

  R1_INLINE int64_t columns(int64_t p, int c) const {
    return std::min<int64_t>(16, a.weight.n - panels.number[p] * kPanel - 16 * c);
  }
  R1_INLINE f32x16 value(int64_t p, int64_t r, int c) const {
    const Act* act = a.act + 2 * (first + r);
    const auto part = [&](int number) R1_ALWAYS {  // codes are 128 too large
      i32x16 sums;
      std::memcpy(&sums, dots(p, number, r, c), sizeof sums);
      return __builtin_convertvector(sums - 128 * act[number].sum, f32x16);
    };
    const f32x16 v = fma(part(0), splat(256.0f), part(1)) * (scales[p][c] * act[0].scale);
    return a.bias != nullptr ? v + load_some(a.bias + panels.number[p] * kPanel + 16 * c, columns(p, c)) : v;
  }
  // Row r of the item, panel by panel; a gate's when both halves are there.
  template <class T>
  R1_INLINE void write(int64_t p, int64_t r) const {
    if (a.gate != kNoGate && p == 0) return;
    const int64_t panel = panels.number[a.gate != kNoGate ? 0 : p];
    T* out = static_cast<T*>(a.out) + (first + r) * a.ldo + panel * kPanel;
    for (int c = 0; c < 4 && columns(p, c) > 0; ++c) {
      const f32x16 v = a.gate != kNoGate ? gate_of(a, value(0, r, c)) * value(1, r, c) : value(p, r, c);
      store_some(out + 16 * c, v, columns(p, c));
    }
  }
};

template <class T>
void linear_bytes(const LinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  const int64_t rows = row_block(a.m, a.weight, a.row_tile), blocks = row_blocks(a.m, a.weight, a.row_tile);
  const int64_t steps = f.padded_k(a.weight.k) / kStepK;
  auto* sums = reinterpret_cast<int32_t*>(thread_scratch(4 * kTiledBlock / kTileRows * 8 * kTileDots));
  TileRegisters registers;
  for (int64_t item = begin; item < end; ++item) {
    const Panels panels = panels_of(a, item / blocks);
    const int64_t first = item % blocks * rows, count = std::min(rows, a.m - first);
    const Bytes b = bytes_of(a.x, a.m, first, f.padded_k(a.weight.k), a.tiled);
    f32x16 scales[4][4];
    for (int64_t p = 0; p < panels.count; ++p)
      for (int c = 0; c < 4; ++c) {
        const uint8_t* at = a.weight.panel(panels.number[p]) + f.group / 4 * kUnit;
        scales[p][c] = reinterpret_cast<f32x16>(f.wide ? load_scales<true>(at, c) : load_scales<false>(at, c));
      }
    if (count < kFewRows) {
      const auto dots = [&](int64_t p, int part, int64_t r, int c) R1_ALWAYS {
        return sums + ((p * kFewRows + r) * 2 + part) * kPanel + 16 * c;
      };
      const ByteResults<decltype(dots)> results{a, panels, scales, first, dots};
      for (int64_t p = 0; p < panels.count; ++p) {
        (count == 1 ? few_rows<1> : count == 2 ? few_rows<2> : few_rows<3>)(b, a.weight.panel(panels.number[p]), f,
                                                                            steps * kStepK, dots(p, 0, 0, 0));
        for (int64_t r = 0; r < count; ++r) results.template write<T>(p, r);
      }
      continue;
    }
    if (in_one_tile(a.m, a.tiled)) {
      const auto dots = [&](int64_t p, int part, int64_t r, int c) R1_ALWAYS {
        return sums + (4 * p + c) * kTileDots + 16 * (8 * part + r);
      };
      const ByteResults<decltype(dots)> results{a, panels, scales, first, dots};
      for (int64_t p = 0; p < panels.count; ++p) {
        multiply_eight(b, a.weight.panel(panels.number[p]), f, steps, dots(p, 0, 0, 0));
        for (int64_t r = 0; r < count; ++r) results.template write<T>(p, r);
      }
      continue;
    }
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    const auto tile_dots = [&](int64_t p, int64_t t, int64_t pair) R1_ALWAYS {
      return sums + ((p * tiles + t) * 2 + pair) * 4 * kTileDots;
    };
    const auto dots = [&](int64_t p, int part, int64_t r, int c) R1_ALWAYS {
      return tile_dots(p, r / kTileRows, c / 2) + (2 * part + c % 2) * kTileDots + 16 * (r % kTileRows);
    };
    const ByteResults<decltype(dots)> results{a, panels, scales, first, dots};
    const int64_t reach = tiles <= kNearTiles ? kNearReach : kReach, passes = 2 * tiles, asks = (16 + passes - 1) / passes;
    for (int64_t s = 0; s < steps; s += reach)
      for (int64_t p = 0; p < panels.count; ++p)
        for (int64_t i = 0; i < passes; ++i) {  // 32 columns of these k stay in the first cache for all rows
          const int64_t pair = i / tiles, t = i % tiles;
          Bytes now = b;
          now.x += t * b.below;
          multiply_bytes(now, a.weight.panel(panels.number[p]), f, s, std::min(steps, s + reach), pair, i, i * asks < 16 ? asks : 0,
                         tile_dots(p, t, pair));
          if (pair == 0 || s + reach < steps) continue;
          for (int64_t r = t * kTileRows; r < std::min(count, (t + 1) * kTileRows); ++r) results.template write<T>(p, r);
        }
  }
}

}  // namespace R1_PATH
}  // namespace r1
