// The packed product with AVX2: 16 columns at a time (two registers of a panel), up to 3 rows.
#pragma once

#include <immintrin.h>

#include "linear_generic.h"

namespace r1 {
namespace R1_PATH {

template <bool NIBBLES>
R1_INLINE __m256i codes_at(const uint8_t* group, int k, int half) {  // the 4 codes of 8 columns at k, k + 1, …
  const int64_t unit = NIBBLES ? k / 8 : k / 4;
  __m256i raw = _mm256_load_si256(reinterpret_cast<const __m256i*>(group + unit * kUnit) + half);
  if constexpr (NIBBLES) {
    if (k % 8 >= 4) raw = _mm256_srli_epi16(raw, 4);
    raw = _mm256_and_si256(raw, _mm256_set1_epi8(15));
  }
  return raw;
}

// Per column the sum of 4 products. Nibbles can't saturate the 16-bit intermediate (2 * 15 * 127); bytes could, so they
// are widened first.
template <bool NIBBLES>
R1_INLINE __m256i dot4(__m256i sum, __m256i codes, __m256i x) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (NIBBLES) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
  } else {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
}

R1_INLINE __m256 eight_scales(const uint8_t* scales, bool wide, int64_t column) {
  if (wide) return _mm256_loadu_ps(reinterpret_cast<const float*>(scales) + column);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + 2 * column)));
}

template <int ROWS, bool NIBBLES>
void quantised_rows(const LinearArgs& a, const uint8_t* panel, int64_t row, float* sums) {
  const Format& f = a.weight.format;
  const int64_t k = f.padded_k(a.weight.k), groups = k / f.group;
  const int8_t* x = static_cast<const int8_t*>(a.x) + row * k;
  const Act* act = a.act + row * groups;
  for (int half = 0; half < 8; half += 2) {  // registers of 8 columns
    __m256 sum[ROWS][2];
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* group = panel + g * f.group_bytes();
      __m256i dot[ROWS][2];
      for (int r = 0; r < ROWS; ++r) dot[r][0] = dot[r][1] = _mm256_set1_epi32(-f.offset() * act[r * groups + g].sum);
      for (int i = 0; i < f.group; i += 4) {
        const __m256i codes[2] = {codes_at<NIBBLES>(group, i, half), codes_at<NIBBLES>(group, i, half + 1)};
        for (int r = 0; r < ROWS; ++r) {
          int32_t four;
          std::memcpy(&four, x + r * k + g * f.group + i, 4);
          const __m256i b = _mm256_set1_epi32(four);
          for (int c = 0; c < 2; ++c) dot[r][c] = dot4<NIBBLES>(dot[r][c], codes[c], b);
        }
      }
      const uint8_t* scales = group + f.group / f.unit_k() * kUnit;
      for (int c = 0; c < 2; ++c) {
        const __m256 scale = eight_scales(scales, f.wide, 8 * (half + c));
        for (int r = 0; r < ROWS; ++r) {
          const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(act[r * groups + g].scale));
          sum[r][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][c]), both, sum[r][c]);
        }
        if (f.minima) {
          const __m256 minimum = eight_scales(scales, f.wide, kPanel + 8 * (half + c));
          for (int r = 0; r < ROWS; ++r) {
            const Act& group_act = act[r * groups + g];
            const __m256 xs = _mm256_set1_ps(group_act.scale * static_cast<float>(group_act.sum));
            sum[r][c] = _mm256_fmadd_ps(minimum, xs, sum[r][c]);
          }
        }
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < 2; ++c) _mm256_storeu_ps(sums + r * kPanel + 8 * (half + c), sum[r][c]);
  }
}

// bf16 and fp32: one k after the other, fused multiply-adds.
template <int ROWS, bool BF16>
void float_rows(const LinearArgs& a, const uint8_t* panel, int64_t row, float* sums) {
  const int64_t k = a.weight.format.padded_k(a.weight.k);
  for (int half = 0; half < 8; half += 2) {
    __m256 sum[ROWS][2];
    for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < k; ++i) {
      __m256 v[2];
      for (int c = 0; c < 2; ++c) {
        if constexpr (BF16) {
          const __m256i pair = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + i / 2 * kUnit) + half + c);
          v[c] = _mm256_castsi256_ps(i % 2 ? _mm256_and_si256(pair, _mm256_set1_epi32(-65536))
                                           : _mm256_slli_epi32(pair, 16));
        } else {
          v[c] = _mm256_load_ps(reinterpret_cast<const float*>(panel + i * kUnit) + 8 * (half + c));
        }
      }
      for (int r = 0; r < ROWS; ++r) {
        const float value = BF16 ? from_bf16(static_cast<const uint16_t*>(a.x)[(row + r) * k + i])
                                 : static_cast<const float*>(a.x)[(row + r) * a.ldx + i];
        const __m256 b = _mm256_set1_ps(value);
        for (int c = 0; c < 2; ++c) sum[r][c] = _mm256_fmadd_ps(b, v[c], sum[r][c]);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int c = 0; c < 2; ++c) _mm256_storeu_ps(sums + r * kPanel + 8 * (half + c), sum[r][c]);
  }
}

template <int ROWS>
void some_rows(const LinearArgs& a, const uint8_t* panel, int64_t row, float* sums) {
  switch (a.weight.format.kind) {
    case Kind::int4: return quantised_rows<ROWS, true>(a, panel, row, sums);
    case Kind::int8: return quantised_rows<ROWS, false>(a, panel, row, sums);
    case Kind::bf16: return float_rows<ROWS, true>(a, panel, row, sums);
    case Kind::fp32: return float_rows<ROWS, false>(a, panel, row, sums);
  }
}

inline void linear_avx2(const LinearArgs& a, int64_t begin, int64_t end) {
  const int64_t block = row_block(a.m, a.weight, a.row_tile), blocks = row_blocks(a.m, a.weight, a.row_tile);
  alignas(64) float sums[3 * kPanel];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item / blocks;
    const int64_t first = item % blocks * block;
    const int64_t last = std::min(a.m, first + block);
    for (int64_t row = first; row < last;) {
      const int64_t rows = std::min<int64_t>(3, last - row);
      if (rows == 3) some_rows<3>(a, a.weight.panel(panel), row, sums);
      else if (rows == 2) some_rows<2>(a, a.weight.panel(panel), row, sums);
      else some_rows<1>(a, a.weight.panel(panel), row, sums);
      for (int64_t r = 0; r < rows; ++r) finish(a, panel, row + r, sums + r * kPanel);
      row += rows;
    }
  }
}

}  // namespace R1_PATH
}  // namespace r1
