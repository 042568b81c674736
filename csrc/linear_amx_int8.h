// On the AMX path, products with weights whose rows have one scale each: of 8 bits, or of 4 bits times a whole number for
// each group, which also is a byte. Such a product is a sum of integers times two scales, so it needs no float step before
// its end, and integers have the same sum in any order: few rows go through VNNI and many through tiles, with the same
// bits. A row is rounded to 16 bits, 256 * high + low, which two products of bytes give exactly:
//   out = (float(dot(high)) * 256 + float(dot(low))) * (weight scale * row scale)
#pragma once

#include "amx.h"
#include "lanes.h"
#include "linear_avx512.h"
#include "rows_impl.h"

namespace r1 {
namespace R1_PATH {

constexpr int64_t kStepK = kStepByRow;           // k of a tile of bytes
constexpr int64_t kStepCodes = kStepK * kPanel;  // bytes of a panel's
constexpr int64_t kPart = 1024;      // bytes of one
constexpr int64_t kFewRows = 4;      // below, VNNI reads the weights faster
// Steps that are gone through for all rows and columns, a tile's rows for all columns: the panel's stay in the first cache;
// of few rows as much as fetch_codes asks for ahead, so that each pass can ask for its share.
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

// 4-bit codes of 64 k of a panel, in two groups from `group` on -> bytes as 8-bit weights have them: 128 + multiple * (code - 8),
// where a negative multiple takes the code's mirror image instead, |multiple| * (15 - code - 7).
template <bool ASKS>
R1_INLINE void expand_bytes(const uint8_t* group, uint8_t* to) {
  constexpr int64_t kCodes = 4 * kUnit, kGroup = kCodes + 2 * kPanel;
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i each = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);  // a lane's first byte, four times
  for (int half = 0; half < 2; ++half, group += kGroup, to += kStepCodes / 2) {
    if constexpr (ASKS) {
      fetch_codes(group + kCodes);
      fetch_codes(group + kCodes + 64);
    }
    for (int c = 0; c < 4; ++c) {
      const __m512i multiple = _mm512_cvtps_epi32(load_scales<false>(group + kCodes, c)), size = _mm512_abs_epi32(multiple);
      const __mmask16 negative = _mm512_movepi32_mask(multiple);
      const __m512i mirror = _mm512_maskz_mov_epi32(negative, nibble);
      const __m512i twice = _mm512_or_si512(size, _mm512_slli_epi32(size, 16));  // nibbles times it fit their bytes
      const __m512i eight = _mm512_mask_sub_epi32(_mm512_slli_epi32(size, 3), negative, _mm512_slli_epi32(size, 3), size);
      const __m512i zero = _mm512_shuffle_epi8(_mm512_sub_epi32(_mm512_set1_epi32(128), eight), each);
      const auto put = [&](uint8_t* at, __m512i codes) R1_ALWAYS {
        constexpr int kAndXor = 0x6A;  // (codes & nibble) ^ mirror
        const __m512i code = _mm512_ternarylogic_epi32(codes, nibble, mirror, kAndXor);
        _mm512_store_si512(at, _mm512_add_epi8(_mm512_mullo_epi16(code, twice), zero));
      };
#pragma GCC unroll 4
      for (int unit = 0; unit < 4; ++unit) {
        if constexpr (ASKS) fetch_codes(group + 64 * (4 * c + unit));
        const __m512i raw = _mm512_load_si512(group + unit * kUnit + 64 * c);
        put(to + 2 * unit * kUnit + 64 * c, raw);
        put(to + (2 * unit + 1) * kUnit + 64 * c, _mm512_srli_epi16(raw, 4));
      }
    }
  }
}

// Where a panel's bytes of 64 k number s stand: in the panel itself,
struct Held {
  const uint8_t* panel;
  int64_t per, group_bytes;  // steps of a group
  static constexpr bool kAsks = true;  // whether who multiplies asks for what follows
  R1_INLINE const uint8_t* step(int64_t s) const { return panel + s / per * group_bytes + s % per * kStepCodes; }
};
// where a part of it was expanded,
struct Part {
  const uint8_t* bytes;
  int64_t first;
  const uint8_t *next, *end;  // what is still to be asked for, `each` lines at a time
  int64_t each;
  static constexpr bool kAsks = false;
  R1_INLINE void ask() {
    for (int64_t i = 0; i < each && next < end; ++i, next += 64) fetch_codes(next);
  }
  R1_INLINE const uint8_t* step(int64_t s) const { return bytes + (s - first) * kStepCodes; }
};
// or where it is now, one of two in turns.
struct Turns {
  const uint8_t* panel;
  int64_t step_bytes;
  uint8_t* bytes;
  static constexpr bool kAsks = false;
  R1_INLINE const uint8_t* step(int64_t s) const {
    uint8_t* to = bytes + s % 2 * kStepCodes;
    expand_bytes<true>(panel + s * step_bytes, to);
    return to;
  }
};

// Products of up to three rows, (high, low) of each, with a panel: dots (2 * ROWS, 64).
template <int ROWS, class Source>
void few_rows(const Bytes& b, const Source& source, int64_t k, int32_t* dots) {
  __m512i sum[2 * ROWS][4];
  for (auto& row : sum)
    for (auto& part : row) part = _mm512_setzero_si512();
  for (int64_t s = 0; s < k / kStepK; ++s) {
    const uint8_t* w = source.step(s);
    const auto* x = reinterpret_cast<const int8_t*>(b.x + s * b.step);
#pragma GCC unroll 4
    for (int unit = 0; unit < kStepK / 4; ++unit, w += kUnit) {
      __m512i v[4];
      for (int c = 0; c < 4; ++c) v[c] = _mm512_load_si512(w + 64 * c);
      if constexpr (Source::kAsks)
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
template <class Source>
R1_INLINE void multiply_bytes(const Bytes& b, Source& source, int64_t first, int64_t last, int c, int64_t pass,
                              int64_t asks, int32_t* dots) {
  if (first == 0) {
    R1_TILE_LOAD(0, kZeros, 64); R1_TILE_LOAD(1, kZeros, 64); R1_TILE_LOAD(2, kZeros, 64); R1_TILE_LOAD(3, kZeros, 64);
  } else {
    R1_TILE_LOAD(0, dots, 64); R1_TILE_LOAD(1, dots + kTileDots, 64);
    R1_TILE_LOAD(2, dots + 2 * kTileDots, 64); R1_TILE_LOAD(3, dots + 3 * kTileDots, 64);
  }
  for (int64_t s = first; s < last; ++s) {
    const uint8_t* w = source.step(s) + 128 * c;
    const uint8_t* x = b.x + s * b.step;
    const auto ask = [&](int quarter) R1_ALWAYS {
      if constexpr (!Source::kAsks) return source.ask();
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
template <class Source>
void multiply_eight(const Bytes& b, const Source& source, int64_t steps, int32_t* dots) {
  R1_TILE_LOAD(0, kZeros, 64); R1_TILE_LOAD(1, kZeros, 64); R1_TILE_LOAD(2, kZeros, 64); R1_TILE_LOAD(3, kZeros, 64);
  for (int64_t s = 0; s < steps; ++s) {
    const uint8_t* w = source.step(s);
    const auto ask = [&](int quarter) R1_ALWAYS {
      if constexpr (!Source::kAsks) return;
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

// The own scales of a panel's rows.
R1_INLINE void load_row_scales(const Weight& w, const uint8_t* panel, f32x16 (&to)[4]) {
  const Format& f = w.format;
  const auto* at = f.multiples() ? reinterpret_cast<const uint8_t*>(w.row_scales(panel)) : panel + f.group / 4 * kUnit;
  for (int c = 0; c < 4; ++c)
    to[c] = reinterpret_cast<f32x16>(f.multiples() || f.wide ? load_scales<true>(at, c) : load_scales<false>(at, c));
}

template <class T, bool NIBBLES>
void linear_bytes_of(const LinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  const int64_t rows = row_block(a.m, a.weight, a.row_tile), blocks = row_blocks(a.m, a.weight, a.row_tile);
  const int64_t steps = f.padded_k(a.weight.k) / kStepK, step_bytes = kStepK / f.group * f.group_bytes();
  constexpr int64_t kSums = 4 * kTiledBlock / kTileRows * 8 * kTileDots;
  auto* sums = reinterpret_cast<int32_t*>(thread_scratch(kSums + (NIBBLES ? kReach * kStepCodes / 4 : 0)));
  auto* expanded = reinterpret_cast<uint8_t*>(sums + kSums);
  const auto source = [&](const uint8_t* panel) R1_ALWAYS {
    if constexpr (NIBBLES) return Turns{panel, step_bytes, expanded};
    else return Held{panel, f.group / kStepK, f.group_bytes()};
  };
  TileRegisters registers;
  for (int64_t item = begin; item < end; ++item) {
    const Panels panels = panels_of(a, item / blocks);
    const int64_t first = item % blocks * rows, count = std::min(rows, a.m - first);
    const Bytes b = bytes_of(a.x, a.m, first, f.padded_k(a.weight.k), a.tiled);
    const uint8_t* panel[4];
    f32x16 scales[4][4];
    for (int64_t p = 0; p < panels.count; ++p) {
      panel[p] = a.weight.panel(panels.number[p]);
      load_row_scales(a.weight, panel[p], scales[p]);
    }
    if (count < kFewRows) {
      const auto dots = [&](int64_t p, int part, int64_t r, int c) R1_ALWAYS {
        return sums + ((p * kFewRows + r) * 2 + part) * kPanel + 16 * c;
      };
      const ByteResults<decltype(dots)> results{a, panels, scales, first, dots};
      for (int64_t p = 0; p < panels.count; ++p) {
        const auto from = source(panel[p]);
        using From = std::remove_const_t<decltype(from)>;
        (count == 1 ? few_rows<1, From> : count == 2 ? few_rows<2, From> : few_rows<3, From>)(b, from, steps * kStepK,
                                                                                              dots(p, 0, 0, 0));
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
        multiply_eight(b, source(panel[p]), steps, dots(p, 0, 0, 0));
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
    const bool near = tiles <= kNearTiles;
    const int64_t reach = near ? kNearReach : kReach, passes = 2 * tiles, asks = (16 + passes - 1) / passes;
    for (int64_t s = 0; s < steps; s += reach)
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t last = std::min(steps, s + reach);
        const uint8_t *codes = panel[p] + s * step_bytes, *end = panel[p] + last * step_bytes;
        if constexpr (NIBBLES)
          for (int64_t i = 0; i < last - s; ++i) {
            if (near) expand_bytes<false>(codes + i * step_bytes, expanded + i * kStepCodes);
            else expand_bytes<true>(codes + i * step_bytes, expanded + i * kStepCodes);
          }
        Part part{expanded, s, near ? codes : end, end, (step_bytes / 64 + 4 * passes - 1) / (4 * passes)};
        for (int64_t i = 0; i < passes; ++i) {  // these k stay in the first cache for all rows
          const int64_t pair = i % 2, t = i / 2;
          Bytes now = b;
          now.x += t * b.below;
          const auto multiply = [&](auto& from) R1_ALWAYS {
            multiply_bytes(now, from, s, last, pair, i, i * asks < 16 ? asks : 0, tile_dots(p, t, pair));
          };
          auto held = source(panel[p]);
          if constexpr (NIBBLES) multiply(part);
          else multiply(held);
          if (pair == 0 || last < steps) continue;
          for (int64_t r = t * kTileRows; r < std::min(count, (t + 1) * kTileRows); ++r) results.template write<T>(p, r);
        }
      }
  }
}

inline void linear_bytes(const LinearArgs& a, int64_t begin, int64_t end) {
  if (a.weight.format.multiples())
    return a.out_bf16 ? linear_bytes_of<uint16_t, true>(a, begin, end) : linear_bytes_of<float, true>(a, begin, end);
  return a.out_bf16 ? linear_bytes_of<uint16_t, false>(a, begin, end) : linear_bytes_of<float, false>(a, begin, end);
}

}  // namespace R1_PATH
}  // namespace r1
