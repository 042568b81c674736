// The packed product with AVX-512: a tile is up to 3 rows by one panel, 12 accumulators. (Measured on Zen 4: 4 rows and
// more lose, since the broadcasts and the accumulators' traffic grow faster than what they save.)
#pragma once

#include <immintrin.h>

#include "linear_generic.h"

namespace r1 {
namespace R1_PATH {

constexpr int kRowTile = 3;
constexpr int64_t kAhead = 4096;     // bytes between what is read and what is prefetched

struct TileArgs {
  const uint8_t* w;
  int64_t units_or_groups;
  const void* x[kRowTile];
  const Act* act[kRowTile];
  float* sums;  // (rows, 64)
};
using Tile = void (*)(const TileArgs&);

template <bool FETCH>
R1_INLINE void fetch(const uint8_t* w) {
  if constexpr (FETCH)
    for (int i = 0; i < 4; ++i) _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + 64 * i), _MM_HINT_T0);
}

R1_INLINE __m512i broadcast(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

template <bool WIDE>
R1_INLINE __m512 load_scales(const uint8_t* p, int c) {
  if constexpr (WIDE) return _mm512_load_ps(reinterpret_cast<const float*>(p) + 16 * c);
  else return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p) + c));
}

// NIBBLES: 4 bit; else 8 bit. OFFSET: the code that stands for zero where there are no MINIMA.
// (Unpacking a 4-bit panel once for all rows was tried: writing and reading it again costs what it saves.)
template <int ROWS, bool NIBBLES, int GROUP, int OFFSET, bool MINIMA, bool WIDE, bool FETCH>
void quantised_tile(const TileArgs& t) {
  const uint8_t* w = t.w;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 sum[ROWS][4];
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_setzero_ps();
  for (int64_t g = 0; g < t.units_or_groups; ++g) {
    __m512i dot[ROWS][4];
    for (int r = 0; r < ROWS; ++r) {
      const __m512i start = _mm512_set1_epi32(-OFFSET * t.act[r][g].sum);
      for (int c = 0; c < 4; ++c) dot[r][c] = start;
    }
    const int8_t* x[ROWS];
    for (int r = 0; r < ROWS; ++r) x[r] = static_cast<const int8_t*>(t.x[r]) + g * GROUP;
    if constexpr (NIBBLES) {
#pragma GCC unroll 4
      for (int k = 0; k < GROUP; k += 8) {
        __m512i raw[4], part[4];
        for (int c = 0; c < 4; ++c) raw[c] = _mm512_load_si512(w + 64 * c);
        fetch<FETCH>(w);
        w += kUnit;
        for (int c = 0; c < 4; ++c) part[c] = _mm512_and_si512(raw[c], low);
        for (int r = 0; r < ROWS; ++r) {
          const __m512i b = broadcast(x[r] + k);
          for (int c = 0; c < 4; ++c) dot[r][c] = _mm512_dpbusd_epi32(dot[r][c], part[c], b);
        }
        for (int c = 0; c < 4; ++c) part[c] = _mm512_and_si512(_mm512_srli_epi16(raw[c], 4), low);
        for (int r = 0; r < ROWS; ++r) {
          const __m512i b = broadcast(x[r] + k + 4);
          for (int c = 0; c < 4; ++c) dot[r][c] = _mm512_dpbusd_epi32(dot[r][c], part[c], b);
        }
      }
    } else {
#pragma GCC unroll 8
      for (int k = 0; k < GROUP; k += 4) {
        __m512i v[4];
        for (int c = 0; c < 4; ++c) v[c] = _mm512_load_si512(w + 64 * c);
        fetch<FETCH>(w);
        w += kUnit;
        for (int r = 0; r < ROWS; ++r) {
          const __m512i b = broadcast(x[r] + k);
          for (int c = 0; c < 4; ++c) dot[r][c] = _mm512_dpbusd_epi32(dot[r][c], v[c], b);
        }
      }
    }
    constexpr int kScales = kPanel * (WIDE ? 4 : 2);
    for (int c = 0; c < 4; ++c) {
      const __m512 scale = load_scales<WIDE>(w, c);
      for (int r = 0; r < ROWS; ++r) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(t.act[r][g].scale));
        sum[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][c]), both, sum[r][c]);
      }
      if constexpr (MINIMA) {
        const __m512 minimum = load_scales<WIDE>(w + kScales, c);
        for (int r = 0; r < ROWS; ++r) {
          const float xs = t.act[r][g].scale * static_cast<float>(t.act[r][g].sum);
          sum[r][c] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(xs), sum[r][c]);
        }
      }
    }
    w += kScales * (MINIMA ? 2 : 1);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < 4; ++c) _mm512_storeu_ps(t.sums + kPanel * r + 16 * c, sum[r][c]);
}

template <int ROWS, bool FETCH>
void bf16_tile(const TileArgs& t) {
  const uint8_t* w = t.w;
  __m512 sum[ROWS][4];
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int64_t u = 0; u < t.units_or_groups; ++u, w += kUnit) {
    __m512bh v[4];
    for (int c = 0; c < 4; ++c) v[c] = reinterpret_cast<__m512bh>(_mm512_load_si512(w + 64 * c));
    fetch<FETCH>(w);
    for (int r = 0; r < ROWS; ++r) {
      const auto b = reinterpret_cast<__m512bh>(broadcast(static_cast<const int8_t*>(t.x[r]) + 4 * u));
      for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], b, v[c]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < 4; ++c) _mm512_storeu_ps(t.sums + kPanel * r + 16 * c, sum[r][c]);
}

template <int ROWS, bool FETCH>
void fp32_tile(const TileArgs& t) {
  const uint8_t* w = t.w;
  __m512 sum[ROWS][4];
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int64_t u = 0; u < t.units_or_groups; ++u, w += kUnit) {
    __m512 v[4];
    for (int c = 0; c < 4; ++c) v[c] = _mm512_load_ps(reinterpret_cast<const float*>(w) + 16 * c);
    fetch<FETCH>(w);
    for (int r = 0; r < ROWS; ++r) {
      const __m512 b = _mm512_set1_ps(static_cast<const float*>(t.x[r])[u]);
      for (int c = 0; c < 4; ++c) sum[r][c] = _mm512_fmadd_ps(b, v[c], sum[r][c]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < 4; ++c) _mm512_storeu_ps(t.sums + kPanel * r + 16 * c, sum[r][c]);
}

struct Tiles {
  Tile first[kRowTile + 1];  // by rows; these fetch ahead, for the first pass over a panel
  Tile again[kRowTile + 1];
};

template <template <int, bool> class Of>
Tiles tiles() {
  return {{nullptr, Of<1, true>::run, Of<2, true>::run, Of<3, true>::run},
          {nullptr, Of<1, false>::run, Of<2, false>::run, Of<3, false>::run}};
}
template <int ROWS, bool FETCH> struct Bf16 { static void run(const TileArgs& t) { bf16_tile<ROWS, FETCH>(t); } };
template <int ROWS, bool FETCH> struct Fp32 { static void run(const TileArgs& t) { fp32_tile<ROWS, FETCH>(t); } };
template <bool NIBBLES, int GROUP, int OFFSET, bool MINIMA, bool WIDE>
struct Quantised {
  template <int ROWS, bool FETCH>
  struct Of {
    static void run(const TileArgs& t) { quantised_tile<ROWS, NIBBLES, GROUP, OFFSET, MINIMA, WIDE, FETCH>(t); }
  };
};

template <bool NIBBLES, int GROUP, int OFFSET, bool MINIMA>
Tiles scaled_tiles(bool wide) {
  if (wide) return tiles<Quantised<NIBBLES, GROUP, OFFSET, MINIMA, true>::template Of>();
  return tiles<Quantised<NIBBLES, GROUP, OFFSET, MINIMA, false>::template Of>();
}

template <int GROUP>
Tiles group_tiles(const Format& f) {
  if (f.kind == Kind::int8) return scaled_tiles<false, GROUP, 128, false>(f.wide);
  return f.minima ? scaled_tiles<true, GROUP, 0, true>(f.wide) : scaled_tiles<true, GROUP, 8, false>(f.wide);
}

inline Tiles choose_tiles(const Format& f) {
  if (f.kind == Kind::bf16) return tiles<Bf16>();
  if (f.kind == Kind::fp32) return tiles<Fp32>();
  return f.group == 32 ? group_tiles<32>(f) : group_tiles<128>(f);
}

inline void linear_avx512(const LinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.format;
  const int64_t k = f.padded_k(a.weight.k);
  const Tiles tile = choose_tiles(f);
  const int64_t groups = f.group > 0 ? k / f.group : k / f.unit_k();
  const int64_t row_bytes = f.group > 0 ? k : f.kind == Kind::bf16 ? 2 * k : 4 * a.ldx;
  const int64_t block = row_block(a.m, a.weight, a.row_tile), blocks = row_blocks(a.m, a.weight, a.row_tile);
  alignas(64) float sums[kRowTile * kPanel];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks;
    const int64_t first = item % blocks * block;
    const int64_t last = std::min(a.m, first + block);
    TileArgs t{a.weight.panel(panel), groups, {}, {}, sums};
    for (int64_t row = first; row < last;) {
      const int64_t left = last - row;
      const int rows = left == 4 ? 2 : static_cast<int>(std::min<int64_t>(left, kRowTile));
      for (int r = 0; r < rows; ++r) {
        t.x[r] = static_cast<const uint8_t*>(a.x) + (row + r) * row_bytes;
        t.act[r] = a.act == nullptr ? nullptr : a.act + (row + r) * groups;
      }
      (row == first ? tile.first : tile.again)[rows](t);
      for (int r = 0; r < rows; ++r) finish(a, panel, row + r, sums + r * kPanel);
      row += rows;
    }
  }
}

}  // namespace R1_PATH
}  // namespace r1
