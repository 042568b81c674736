// The packed product with matrix tiles, for what has enough rows: the integers are exact, and the float steps are those
// of the AVX-512 tiles one by one, so both give the same bits. bf16 goes through tiles at any number of rows.
#pragma once

#include "amx.h"
#include "linear_avx512.h"

namespace r1 {
namespace R1_PATH {

constexpr int64_t kChunk = 128;   // k that are worked on together: one group of 128, or up to four of 32
constexpr int64_t kFewRows = 5;   // below, AVX-512 is faster

// A chunk of a panel as the tiles take it: signed codes, by 16 columns, and its groups' scales and minima as floats.
struct Chunk {
  alignas(64) int8_t codes[4][kChunk / 4][64];
  alignas(64) float scales[4][kPanel];
  alignas(64) float minima[4][kPanel];
  alignas(64) int32_t dots[2][4][kTileRows][16];  // two tiles' products, by group
};

template <bool NIBBLES, int GROUP, bool MINIMA, bool WIDE>
R1_INLINE const uint8_t* unpack_group(const uint8_t* w, int group, Chunk& chunk) {
  const __m512i low = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), top = _mm512_set1_epi8(-128);
  int64_t row = group * GROUP / 4;
#pragma GCC unroll 4
  for (int k = 0; k < GROUP; k += NIBBLES ? 8 : 4, w += kUnit, row += NIBBLES ? 2 : 1) {
    fetch<true>(w);
    for (int c = 0; c < 4; ++c) {
      const __m512i raw = _mm512_load_si512(w + 64 * c);
      if constexpr (NIBBLES) {
        __m512i first = _mm512_and_si512(raw, low), second = _mm512_and_si512(_mm512_srli_epi16(raw, 4), low);
        if constexpr (!MINIMA) first = _mm512_sub_epi8(first, eight), second = _mm512_sub_epi8(second, eight);
        _mm512_store_si512(chunk.codes[c][row], first);
        _mm512_store_si512(chunk.codes[c][row + 1], second);
      } else {
        _mm512_store_si512(chunk.codes[c][row], _mm512_xor_si512(raw, top));
      }
    }
  }
  constexpr int kScales = kPanel * (WIDE ? 4 : 2);
  for (int c = 0; c < 4; ++c) {
    _mm512_store_ps(chunk.scales[group] + 16 * c, load_scales<WIDE>(w, c));
    if constexpr (MINIMA) _mm512_store_ps(chunk.minima[group] + 16 * c, load_scales<WIDE>(w + kScales, c));
  }
  return w + kScales * (MINIMA ? 2 : 1);
}

// Adds `groups` groups' products to the sums of 16 rows and 16 columns, group by group.
template <bool MINIMA>
R1_INLINE void add_products(const int32_t (*dots)[kTileRows][16], const Chunk& chunk, int groups, int column,
                            const ActLanes& lanes, float* sums) {
  __m512 sum[kTileRows];
  for (int r = 0; r < kTileRows; ++r) sum[r] = _mm512_load_ps(sums + r * kPanel);
  for (int g = 0; g < groups; ++g) {
    const __m512 scale = _mm512_load_ps(chunk.scales[g] + column);
    const float* act = lanes.scales + g * lanes.distance;
    for (int r = 0; r < kTileRows; ++r) {
      const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(act[r]));
      sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(dots[g][r])), both, sum[r]);
    }
    if constexpr (MINIMA) {
      const __m512 minimum = _mm512_load_ps(chunk.minima[g] + column);
      const float* total = lanes.sums + g * lanes.distance;
      for (int r = 0; r < kTileRows; ++r) sum[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(total[r]), sum[r]);
    }
  }
  for (int r = 0; r < kTileRows; ++r) _mm512_store_ps(sums + r * kPanel, sum[r]);
}

// The products of one tile of rows with a chunk's 16 columns, in registers 0 to 3; 4 and 5 (or 6 and 7) are used.
#define R1_WHOLE_GROUP(a0, a1, c)            \
  R1_TILE_ZERO(c);                           \
  R1_TILE_LOAD(a0, x, k);                    \
  R1_TILE_LOAD(a1, x + 64, k);               \
  R1_TILE_DOT_INT8(c, a0, 0);                \
  R1_TILE_DOT_INT8(c, a1, 1);                \
  R1_TILE_STORE(c, chunk.dots[half][0], 64)
#define R1_SMALL_GROUP(a, b, c, g)           \
  if (g < groups) {                          \
    R1_TILE_ZERO(c);                         \
    R1_TILE_LOAD(a, x + 32 * g, k);          \
    R1_TILE_DOT_INT8(c, a, b);               \
    R1_TILE_STORE(c, chunk.dots[half][g], 64); \
  }

// Sums (rows, 64) of rows [row, row + rows), whole tiles of them, with a panel.
template <bool NIBBLES, int GROUP, bool MINIMA, bool WIDE>
void quantised_block(const LinearArgs& a, const uint8_t* w, int64_t row, int64_t tiles, float* sums) {
  Chunk chunk;
  const int64_t k = a.weight.format.padded_k(a.weight.k);
  const ActLanes lanes = a.lanes.from(row);
  std::memset(sums, 0, static_cast<size_t>(tiles * kTileRows * kPanel) * 4);
  const TileRegisters registers(GROUP == 128 ? TileRegisters::Shape::whole : TileRegisters::Shape::half);
  for (int64_t first = 0; first < k; first += kChunk) {
    const int groups = static_cast<int>(std::min(kChunk, k - first)) / GROUP;
    for (int g = 0; g < groups; ++g) w = unpack_group<NIBBLES, GROUP, MINIMA, WIDE>(w, g, chunk);
    const int64_t number = first / GROUP * lanes.distance;
    for (int c = 0; c < 4; ++c) {
      if constexpr (GROUP == 128) {
        R1_TILE_LOAD(0, chunk.codes[c][0], 64);
        R1_TILE_LOAD(1, chunk.codes[c][16], 64);
      } else {
        R1_TILE_LOAD(0, chunk.codes[c][0], 64);
        R1_TILE_LOAD(1, chunk.codes[c][8], 64);
        R1_TILE_LOAD(2, chunk.codes[c][16], 64);
        R1_TILE_LOAD(3, chunk.codes[c][24], 64);
      }
      for (int64_t t = 0; t < tiles; ++t) {
        const int8_t* x = static_cast<const int8_t*>(a.x) + (row + t * kTileRows) * k + first;
        const int half = t % 2;
        if constexpr (GROUP == 128) {
          if (half == 0) { R1_WHOLE_GROUP(2, 3, 4); }
          else { R1_WHOLE_GROUP(5, 6, 7); }
        } else {
          R1_SMALL_GROUP(4, 0, 5, 0)
          R1_SMALL_GROUP(6, 1, 7, 1)
          R1_SMALL_GROUP(4, 2, 5, 2)
          R1_SMALL_GROUP(6, 3, 7, 3)
        }
        const ActLanes here{lanes.scales + number + t * kTileRows, lanes.sums + number + t * kTileRows, lanes.distance};
        add_products<MINIMA>(chunk.dots[half], chunk, groups, 16 * c, here, sums + t * kTileRows * kPanel + 16 * c);
      }
    }
  }
}
#undef R1_WHOLE_GROUP
#undef R1_SMALL_GROUP

// bf16: 32 k a step, ascending; the order within a step is the instruction's.
inline void bf16_block(const LinearArgs& a, const uint8_t* w, int64_t row, int64_t tiles, float* sums) {
  const int64_t k = a.weight.format.padded_k(a.weight.k), bytes = 2 * k, steps = k / kTileK;
  const TileRegisters registers(TileRegisters::Shape::whole);
  for (int64_t t = 0; t < tiles; t += 2) {
    const uint8_t* x = static_cast<const uint8_t*>(a.x) + (row + t * kTileRows) * bytes;
    const uint8_t* more = x + kTileRows * bytes;
    float* to = sums + t * kTileRows * kPanel;
    if (t + 1 == tiles) {  // one tile of rows by four of columns
      R1_TILE_ZERO(0); R1_TILE_ZERO(1); R1_TILE_ZERO(2); R1_TILE_ZERO(3);
      for (int64_t s = 0; s < steps; ++s) {
        const uint8_t* at = w + s * kTileK / 2 * kUnit;
        for (int i = 0; i < 16; ++i) fetch<true>(at + i * kUnit);
        R1_TILE_LOAD(4, x + 64 * s, bytes);
        R1_TILE_LOAD(5, at, kUnit); R1_TILE_DOT_BF16(0, 4, 5);
        R1_TILE_LOAD(6, at + 64, kUnit); R1_TILE_DOT_BF16(1, 4, 6);
        R1_TILE_LOAD(7, at + 128, kUnit); R1_TILE_DOT_BF16(2, 4, 7);
        R1_TILE_LOAD(5, at + 192, kUnit); R1_TILE_DOT_BF16(3, 4, 5);
      }
      R1_TILE_STORE(0, to, 4 * kPanel); R1_TILE_STORE(1, to + 16, 4 * kPanel);
      R1_TILE_STORE(2, to + 32, 4 * kPanel); R1_TILE_STORE(3, to + 48, 4 * kPanel);
      break;
    }
    for (int c = 0; c < 2; ++c, to += 32) {  // two by two
      R1_TILE_ZERO(0); R1_TILE_ZERO(1); R1_TILE_ZERO(2); R1_TILE_ZERO(3);
      for (int64_t s = 0; s < steps; ++s) {
        const uint8_t* at = w + s * kTileK / 2 * kUnit + 128 * c;
        if (t == 0 && c == 0)
          for (int i = 0; i < 16; ++i) fetch<true>(at + i * kUnit);
        R1_TILE_LOAD(4, x + 64 * s, bytes);
        R1_TILE_LOAD(6, at, kUnit); R1_TILE_DOT_BF16(0, 4, 6);
        R1_TILE_LOAD(7, at + 64, kUnit); R1_TILE_DOT_BF16(1, 4, 7);
        R1_TILE_LOAD(5, more + 64 * s, bytes); R1_TILE_DOT_BF16(2, 5, 6);
        R1_TILE_DOT_BF16(3, 5, 7);
      }
      R1_TILE_STORE(0, to, 4 * kPanel); R1_TILE_STORE(1, to + 16, 4 * kPanel);
      R1_TILE_STORE(2, to + kTileRows * kPanel, 4 * kPanel); R1_TILE_STORE(3, to + kTileRows * kPanel + 16, 4 * kPanel);
    }
  }
}

using Block = void (*)(const LinearArgs&, const uint8_t*, int64_t, int64_t, float*);

template <int GROUP>
Block group_block(const Format& f) {
  if (f.kind == Kind::int8) return f.wide ? quantised_block<false, GROUP, false, true> : quantised_block<false, GROUP, false, false>;
  if (f.minima) return f.wide ? quantised_block<true, GROUP, true, true> : quantised_block<true, GROUP, true, false>;
  return f.wide ? quantised_block<true, GROUP, false, true> : quantised_block<true, GROUP, false, false>;
}

inline void linear_amx(const LinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  if (f.kind == Kind::fp32) return linear_avx512(a, begin, end);
  const Block block = f.kind == Kind::bf16 ? bf16_block : f.group == 32 ? group_block<32>(f) : group_block<128>(f);
  const int64_t rows = row_block(a.m, a.weight.panels(), a.row_tile);
  const int64_t blocks = row_blocks(a.m, a.weight.panels(), a.row_tile);
  alignas(64) float sums[kRowBlock * kPanel];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks, first = item % blocks * rows, count = std::min(rows, a.m - first);
    if (f.kind != Kind::bf16 && count < kFewRows) {
      linear_avx512(a, item, item + 1);
      continue;
    }
    block(a, a.weight.panel(panel), first, (count + kTileRows - 1) / kTileRows, sums);
    for (int64_t r = 0; r < count; ++r) finish(a, panel, first + r, sums + r * kPanel);
  }
}

}  // namespace R1_PATH
}  // namespace r1
