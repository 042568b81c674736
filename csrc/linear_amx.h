// The packed product with matrix tiles. Weights in codes are expanded to bf16 as they are read and multiplied by rows in
// bf16: the tiles have so much to give that this costs less than scaling integer products group by group, and no
// activation is rounded to 8 bits.
//
// A weight is scale * (code - offset) or scale * code + minimum, times 2^exponent (of the whole weight, see Weight), once
// rounded to fp16 and then to bf16's 8 bits, ties away from zero. Its bits are those of bf16 but for the exponent's bias:
// they stand for 2^-112 times the value. Rows are scaled by powers of two to make up for that (scaled_row), which
// rounds nothing. Sums run over 32 k a step, ascending; the order within a step is the instruction's.
#pragma once

#include <cmath>
#include <type_traits>

#include "amx.h"
#include "lanes.h"
#include "linear_amx_int8.h"
#include "linear_avx512.h"
#include "rows_impl.h"

namespace r1 {
namespace R1_PATH {

// k that are gone through for all rows, two tiles of rows for all columns: a panel's stay in the first cache. So few also bring
// expanding (and what it asks for ahead) close to multiplying.
constexpr int64_t kChunk = 128;
constexpr int64_t kFarAhead = 16384;  // bytes between what is read of a panel and what is prefetched
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kStepBytes = 4 * kTileBytes;  // of 32 k and a panel's 64 columns
constexpr int kRowExponent = 100;   // a prepared row's largest value is 2^100 to 2^101

// Where row r of prepared rows begins: row by row, or in tiles of 16 rows, of which two take turns (see row_step).
R1_INLINE int64_t row_place(int64_t r, int64_t row_bytes, bool tiled) {
  if (!tiled) return r * row_bytes;
  const int64_t pair = r / (2 * kTileRows), half = r / kTileRows % 2;
  return pair * 2 * kTileRows * row_bytes + half * kTileBytes + r % kTileRows * 64;
}
// Bytes to its next 32 k. Up to 16 of all rows are one tile.
R1_INLINE int64_t row_step(int64_t m, bool tiled) { return !tiled ? 64 : m > kTileRows ? 2 * kTileBytes : kTileBytes; }

// A row's values -> bf16, scaled so that the largest is near 2^100, and what undoes that. Of 8 neighbouring k the order is
// 0, 2, 1, 3, 4, 6, 5, 7, in which nibbles and bytes come out in pairs.
template <class T>
R1_INLINE float scaled_row(const T* x, int64_t count, int64_t padded, uint8_t* to, int64_t step) {
  u32x16 largest = {};
  each_16(count, [&](int64_t i, int64_t n) R1_ALWAYS {
    const u32x16 bits = reinterpret_cast<u32x16>(load_some(x + i, n)) & 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  });
  const uint32_t top = max(largest);
  const bool zero = top < 0x0DA24260u, finite = top < 0x7F800000u;  // below 1e-30
  const int exponent = static_cast<int>(top >> 23) - 127;
  const auto power = [](int n) { return splat(from_bf16(static_cast<uint16_t>((n + 127) << 7))); };
  const int whole = kRowExponent - exponent;
  const f32x16 first = power(zero || !finite ? 0 : whole / 2), second = power(zero || !finite ? 0 : whole - whole / 2);
  const __m256i order = _mm256_setr_epi16(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  for (int64_t i = 0; i < padded; i += 16) {
    uint16_t bits[16] = {};
    if (i < count && !zero && finite) store(bits, load_some(x + i, std::min<int64_t>(16, count - i)) * first * second);
    const __m256i ordered = _mm256_permutexvar_epi16(order, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / kTileK * step + i % kTileK * 2), ordered);
  }
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  return zero ? 0.0f : from_bf16(static_cast<uint16_t>((exponent + 127) << 7));
}

template <class T>
R1_INLINE void prepare_rows_amx(const PrepareArgs& a, int64_t begin, int64_t end) {
  const int64_t k = a.format.padded_k(a.k), step = row_step(a.m, a.tiled);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(a.x) + row * a.ldx;
    uint8_t* to = static_cast<uint8_t*>(a.codes) + row_place(row, 2 * k, a.tiled);
    if (a.format.group > 0) {
      a.act[2 * row] = {scaled_row(x, a.k, k, to, step), 0};
      continue;
    }
    for (int64_t i = 0; i < k; i += 16) {
      auto* out = reinterpret_cast<uint16_t*>(to + i / kTileK * step + i % kTileK * 2);
      if (i < a.k) store(out, load_some(x + i, std::min<int64_t>(16, a.k - i)));
      else std::memset(out, 0, 32);
    }
  }
}

inline void prepare_amx(const PrepareArgs& a, int64_t begin, int64_t end) {
  if (a.format.by_row) return a.x_bf16 ? split_rows<uint16_t>(a, begin, end) : split_rows<float>(a, begin, end);
  if (a.x_bf16) prepare_rows_amx<uint16_t>(a, begin, end);
  else prepare_rows_amx<float>(a, begin, end);
}

// 16 columns' scales or minima times 2^exponent, as fp16, each twice.
template <bool WIDE>
R1_INLINE __m512h twice(const uint8_t* p, int c, __m512 power) {
  const __m256i halves = _mm512_cvtps_ph(_mm512_mul_ps(load_scales<WIDE>(p, c), power), _MM_FROUND_TO_NEAREST_INT);
  const __m512i wide = _mm512_cvtepu16_epi32(halves);
  return _mm512_castsi512_ph(_mm512_or_si512(wide, _mm512_slli_epi32(wide, 16)));
}

// fp16 -> the 8 bits of bf16, the exponent's bias left as it is. The multiplication is (x + 4) >> 3.
R1_INLINE __m512i to_biased_bf16(__m512h x) {
  const __m512i rounded = _mm512_mulhrs_epi16(_mm512_castph_si512(x), _mm512_set1_epi16(4096));
  return _mm512_and_si512(rounded, _mm512_set1_epi16(static_cast<short>(0x8FFF)));
}

// 32 k of a panel, number `step` of its group -> tiles of pairs: (16 pairs of k, 16 columns, 2), of the first 32 columns
// and, `half` bytes on, of the others.
template <bool NIBBLES, int GROUP, int OFFSET, bool MINIMA, bool WIDE>
R1_INLINE void expand_step(const uint8_t* group, int64_t step, uint8_t* to, int64_t half, __m512 power) {
  constexpr int kUnits = kTileK / (NIBBLES ? 8 : 4), kCodes = GROUP / kTileK * kUnits * kUnit;
  constexpr int kScales = kPanel * (WIDE ? 4 : 2);
  const __m512i values = _mm512_castph_si512(_mm512_sub_ph(
      _mm512_cvtepi16_ph(_mm512_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9,
                                          8, 7, 6, 5, 4, 3, 2, 1, 0)),
      _mm512_cvtepi16_ph(_mm512_set1_epi16(OFFSET))));
  for (int c = 0; c < 4; ++c) {
    const __m512h scale = twice<WIDE>(group + kCodes, c, power);
    [[maybe_unused]] __m512h minimum;
    if constexpr (MINIMA) minimum = twice<WIDE>(group + kCodes + kScales, c, power);
    const uint8_t *codes = group + step * kUnits * kUnit, *from = codes + 64 * c;
    uint8_t* out = to + c / 2 * half + c % 2 * kTileBytes;
    const auto put = [&](int row, __m512h code) R1_ALWAYS {
      __m512h value;
      if constexpr (MINIMA) value = _mm512_fmadd_ph(code, scale, minimum);
      else value = _mm512_mul_ph(code, scale);
      _mm512_store_si512(out + 64 * row, to_biased_bf16(value));
    };
#pragma GCC unroll 8
    for (int row = 0; row < 16; row += NIBBLES ? 4 : 2, from += kUnit) {
      fetch_codes(codes + 64 * (c * kUnits + row / (NIBBLES ? 4 : 2)));
      const __m512i raw = _mm512_load_si512(from);
      if constexpr (NIBBLES) {  // byte b of a column: k = b in its low half, 4 + b in its high half
        const auto code = [&](__m512i v) R1_ALWAYS { return _mm512_castsi512_ph(_mm512_permutexvar_epi16(v, values)); };
        put(row, code(raw));
        put(row + 1, code(_mm512_srli_epi16(raw, 8)));
        put(row + 2, code(_mm512_srli_epi16(raw, 4)));
        put(row + 3, code(_mm512_srli_epi16(raw, 12)));
      } else {  // 1024 + a byte is 0x6400 + the byte in fp16
        const __m512i base = _mm512_set1_epi16(0x6400);
        const __m512h zero = _mm512_castsi512_ph(_mm512_set1_epi16(0x6480));
        const auto code = [&](__m512i v) R1_ALWAYS {
          return _mm512_sub_ph(_mm512_castsi512_ph(_mm512_or_si512(v, base)), zero);
        };
        put(row, code(_mm512_and_si512(raw, _mm512_set1_epi16(255))));
        put(row + 1, code(_mm512_srli_epi16(raw, 8)));
      }
    }
  }
}

// Expands steps [first, last) of a panel, times `power`: all of 32 columns, then of the others.
using Expand = void (*)(const uint8_t* panel, int64_t first, int64_t last, uint8_t* to, float power);

template <bool NIBBLES, int GROUP, int OFFSET, bool MINIMA>
Expand expansion(bool wide) {
  const auto of = [](auto width) -> Expand {
    return [](const uint8_t* panel, int64_t first, int64_t last, uint8_t* to, float power) {
      constexpr int64_t kSteps = GROUP / kTileK;
      constexpr Format f{NIBBLES ? Kind::int4 : Kind::int8, GROUP, MINIMA, decltype(width)::value};
      const int64_t half = (last - first) * kStepBytes / 2;
      for (int64_t s = first; s < last; ++s, to += kStepBytes / 2)
        expand_step<NIBBLES, GROUP, OFFSET, MINIMA, decltype(width)::value>(panel + s / kSteps * f.group_bytes(), s % kSteps,
                                                                            to, half, _mm512_set1_ps(power));
    };
  };
  return wide ? of(std::true_type{}) : of(std::false_type{});
}
template <int GROUP>
Expand group_expansion(const Format& f) {
  if (f.kind == Kind::int8) return expansion<false, GROUP, 128, false>(f.wide);
  return f.minima ? expansion<true, GROUP, 0, true>(f.wide) : expansion<true, GROUP, 8, false>(f.wide);
}

// Where tiles are. Of rows: bytes to the next 32 k, to the next 16 rows, and from one pair of tiles to the next. Of weights:
// to the next 32 k, the next 16 columns, and from the first 32 columns to the others.
struct Operands {
  const uint8_t* x;
  int64_t x_stride, x_step, x_below, x_pair;
  const uint8_t* w;
  int64_t w_stride, w_step, w_beside, w_half;
};

// Sums are kept by tiles too: (row tiles, 4, 16 rows, 16 columns).
constexpr int64_t kTileFloats = kTileRows * 16;

// One tile of rows by four of columns, into registers 0 to 3.
R1_INLINE void multiply_one(const Operands& o, int64_t steps) {
  const uint8_t *x = o.x, *w = o.w;
  for (int64_t s = 0; s < steps; ++s, x += o.x_step, w += o.w_step) {
    R1_TILE_LOAD(4, x, o.x_stride);
    R1_TILE_LOAD(5, w, o.w_stride); R1_TILE_DOT_BF16(0, 4, 5);
    R1_TILE_LOAD(6, w + o.w_beside, o.w_stride); R1_TILE_DOT_BF16(1, 4, 6);
    R1_TILE_LOAD(7, w + o.w_half, o.w_stride); R1_TILE_DOT_BF16(2, 4, 7);
    R1_TILE_LOAD(5, w + o.w_half + o.w_beside, o.w_stride); R1_TILE_DOT_BF16(3, 4, 5);
  }
}

// Two tiles of rows by two of columns: each operand that is read serves two products.
R1_INLINE void multiply_two(const Operands& o, int64_t steps) {
  const uint8_t *x = o.x, *w = o.w;
  for (int64_t s = 0; s < steps; ++s, x += o.x_step, w += o.w_step) {
    R1_TILE_LOAD(4, x, o.x_stride);
    R1_TILE_LOAD(6, w, o.w_stride); R1_TILE_DOT_BF16(0, 4, 6);
    R1_TILE_LOAD(7, w + o.w_beside, o.w_stride); R1_TILE_DOT_BF16(1, 4, 7);
    R1_TILE_LOAD(5, x + o.x_below, o.x_stride); R1_TILE_DOT_BF16(2, 5, 6);
    R1_TILE_DOT_BF16(3, 5, 7);
  }
}

#define R1_SUMS(OP, first, second, third, fourth) \
  OP(0, first, 64); OP(1, second, 64); OP(2, third, 64); OP(3, fourth, 64)

// A panel with up to 16 rows: the sums stay in their registers. What is multiplied was expanded some turns before, so that
// it has arrived in the cache, and so that expanding and multiplying overlap.
R1_INLINE void narrow_item(Operands o, const uint8_t* panel, int64_t steps, Expand expand, float power,
                           uint8_t* expanded, float* sums) {
  constexpr int64_t kTurns = 4;
  R1_SUMS(R1_TILE_LOAD, kZeros, kZeros, kZeros, kZeros);
  const auto make = [&](int64_t s) R1_ALWAYS {
    if (s < steps) expand(panel, s, s + 1, expanded + s % kTurns * kStepBytes, power);
  };
  if (expand != nullptr)
    for (int64_t s = 0; s + 1 < kTurns; ++s) make(s);
  for (int64_t s = 0; s < steps; ++s, o.x += o.x_step) {
    if (expand != nullptr) {
      make(s + kTurns - 1);
      o.w = expanded + s % kTurns * kStepBytes;
    } else {
      o.w = panel + s * kStepBytes;
      for (int64_t i = 0; i < kStepBytes; i += 64)
        _mm_prefetch(reinterpret_cast<const char*>(o.w + kFarAhead + i), _MM_HINT_T0);
    }
    multiply_one(o, 1);
  }
  R1_SUMS(R1_TILE_STORE, sums, sums + kTileFloats, sums + 2 * kTileFloats, sums + 3 * kTileFloats);
}

// More rows: a part of k is expanded for all of them, panel by panel. Panel p's sums are number p of `sums`. `done(p, t)` is
// called when those of row tiles t and t + 1 are complete, `soon(p, t)` some time before.
template <class Done, class Soon>
R1_INLINE void wide_item(const Operands& o, const Weight& w, const Panels& panels, int64_t k, Expand expand, float power,
                         uint8_t* expanded, int64_t tiles, float* sums, Soon soon, Done done) {
  Operands now = o;
  for (int64_t at = 0; at < k; at += kChunk) {
    const int64_t part = std::min(kChunk, k - at), steps = part / kTileK;
    const bool first = at == 0, last = at + part == k;
    const auto from = [&](float* sums_of) R1_ALWAYS { return first ? kZeros : sums_of; };
    if (expand != nullptr) now.w_half = steps * kStepBytes / 2;
    for (int64_t p = 0; p < panels.count; ++p) {
      const uint8_t* panel = w.panel(panels.number[p]);
      if (expand != nullptr) expand(panel, at / kTileK, at / kTileK + steps, expanded, power);
      for (int64_t t = 0; t < tiles; t += 2)
        for (int half = 0; half < 2; ++half) {
          float *to = sums + ((p * tiles + t) * 4 + 2 * half) * kTileFloats, *below = to + 4 * kTileFloats;
          now.x = o.x + t / 2 * o.x_pair + at / kTileK * o.x_step;
          now.w = (expand != nullptr ? expanded : panel + at / kTileK * o.w_step) + half * now.w_half;
          if (last && half == 1) soon(p, t);
          if (t + 1 < tiles) {
            R1_SUMS(R1_TILE_LOAD, from(to), from(to + kTileFloats), from(below), from(below + kTileFloats));
            multiply_two(now, steps);
            R1_SUMS(R1_TILE_STORE, to, to + kTileFloats, below, below + kTileFloats);
          } else if (half == 1) {  // the last tile has none below: all its columns at once
            now.w -= now.w_half;
            to -= 2 * kTileFloats;
            R1_SUMS(R1_TILE_LOAD, from(to), from(to + kTileFloats), from(to + 2 * kTileFloats), from(to + 3 * kTileFloats));
            multiply_one(now, steps);
            R1_SUMS(R1_TILE_STORE, to, to + kTileFloats, to + 2 * kTileFloats, to + 3 * kTileFloats);
          }
          if (last && half == 1) done(p, t);
        }
    }
  }
}
#undef R1_SUMS

// The results of an item from its sums: scaled back where weights were expanded, with the bias, through the gate.
struct Results {
  const LinearArgs& a;
  const Panels& panels;
  bool scaled;
  float undo;
  const float* sums;
  int64_t tiles;

  // 16 columns of a row of the item, in the order in which they are computed.
  R1_INLINE f32x16 value(int64_t p, int64_t first, int64_t r, int c, f32x16 bias) const {
    f32x16 v = load(sums + ((p * tiles + r / kTileRows) * 4 + c) * kTileFloats + r % kTileRows * 16);
    if (scaled) v = v * undo * a.act[2 * (first + r)].scale;
    return a.bias != nullptr ? v + bias : v;
  }
  R1_INLINE int64_t columns(int64_t p) const { return std::min(kPanel, a.weight.n - panels.number[p] * kPanel); }
  R1_INLINE void biases(int64_t p, f32x16 (&bias)[4]) const {
    for (int c = 0; c < 4 && a.bias != nullptr && 16 * c < columns(p); ++c)
      bias[c] = load_some(a.bias + panels.number[p] * kPanel + 16 * c, std::min<int64_t>(16, columns(p) - 16 * c));
  }

  // Rows [begin, end) of the item, whose first is row `first` of all, to where they belong.
  template <class T>
  R1_INLINE void write(int64_t p, int64_t first, int64_t begin, int64_t end) const {
    f32x16 bias[4] = {};
    biases(p, bias);
    for (int64_t r = begin; r < end; ++r) {
      T* out = static_cast<T*>(a.out) + (first + r) * a.ldo + panels.number[p] * kPanel;
      for (int c = 0; c < 4 && 16 * c < columns(p); ++c)
        store_some(out + 16 * c, value(p, first, r, c, bias[c]), std::min<int64_t>(16, columns(p) - 16 * c));
    }
  }
  R1_INLINE void write_gated(int64_t first, int64_t begin, int64_t end) const {
    f32x16 bias[2][4] = {};
    biases(0, bias[0]);
    biases(1, bias[1]);
    for (int64_t r = begin; r < end; ++r) {
      float* out = static_cast<float*>(a.out) + (first + r) * a.ldo + panels.number[0] * kPanel;
      for (int c = 0; c < 4; ++c) {
        const f32x16 x = value(0, first, r, c, bias[0][c]), up = value(1, first, r, c, bias[1][c]);
        store(out + 16 * c, gate_of(a, x) * up);
      }
    }
  }
};

inline void linear_amx(const LinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  if (f.kind == Kind::fp32) return linear_avx512(a, begin, end);
  if (f.by_row) return linear_bytes(a, begin, end);
  const Expand expand = f.group == 0 ? nullptr : f.group == 32 ? group_expansion<32>(f) : group_expansion<128>(f);
  const int64_t rows = row_block(a.m, a.weight, a.row_tile);
  const int64_t blocks = row_blocks(a.m, a.weight, a.row_tile);
  const int64_t k = f.padded_k(a.weight.k), row_bytes = 2 * k;
  const int64_t most = a.gate != kNoGate ? 2 : by_fours(a.m, a.weight, a.row_tile) ? 4 : 1;
  const float power = std::ldexp(1.0f, a.weight.exponent), undo = std::ldexp(1.0f, 112 - kRowExponent - a.weight.exponent);
  constexpr int64_t kExpandedFloats = kChunk / kTileK * kStepBytes / 4;
  float* sums = thread_scratch(kExpandedFloats + most * kTiledBlock * kPanel);
  auto* expanded = reinterpret_cast<uint8_t*>(sums + most * kTiledBlock * kPanel);
  Operands o{};
  o.x_stride = a.tiled ? 64 : row_bytes;
  o.x_step = row_step(a.m, a.tiled);
  o.x_below = a.tiled ? kTileBytes : kTileRows * row_bytes;
  o.x_pair = 2 * kTileRows * row_bytes;
  o.w_stride = expand != nullptr ? 64 : kUnit;
  o.w_step = expand != nullptr ? kStepBytes / 2 : kStepBytes;
  o.w_beside = expand != nullptr ? kTileBytes : 64;
  o.w_half = 2 * o.w_beside;  // of what narrow_item expands
  TileRegisters registers;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / blocks, first = item % blocks * rows, count = std::min(rows, a.m - first);
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    const Panels panels = panels_of(a, group);
    o.x = static_cast<const uint8_t*>(a.x) + row_place(first, row_bytes, a.tiled);
    registers.rows(tiles == 1 ? count : kTileRows);
    const Results results{a, panels, expand != nullptr, undo, sums, tiles};
    const auto done = [&](int64_t p, int64_t t) R1_ALWAYS {
      const int64_t from = t * kTileRows, to = std::min(count, from + 2 * kTileRows);
      if (a.gate != kNoGate) {
        if (p == 1) results.write_gated(first, from, to);
      } else if (a.out_bf16) {
        results.write<uint16_t>(p, first, from, to);
      } else {
        results.write<float>(p, first, from, to);
      }
    };
    if (tiles == 1) {
      for (int64_t p = 0; p < panels.count; ++p) {
        narrow_item(o, a.weight.panel(panels.number[p]), k / kTileK, expand, power, expanded, sums + p * 4 * kTileFloats);
        done(p, 0);
      }
      continue;
    }
    // The lines that results go to are asked for while tiles are multiplied.
    const int64_t element = a.out_bf16 ? 2 : 4;
    const auto soon = [&](int64_t p, int64_t t) R1_ALWAYS {
      if (a.gate != kNoGate && p == 0) return;
      const int64_t panel = panels.number[a.gate != kNoGate ? 0 : p];
      const auto* out = static_cast<const uint8_t*>(a.out) + panel * kPanel * element;
      for (int64_t r = t * kTileRows; r < std::min(count, (t + 2) * kTileRows); ++r)
        for (int64_t i = 0; i < kPanel * element; i += 64)
          __builtin_prefetch(out + (first + r) * a.ldo * element + i, 1);
    };
    wide_item(o, a.weight, panels, k, expand, power, expanded, tiles, sums, soon, done);
  }
}

}  // namespace R1_PATH
}  // namespace r1
