// The passes of sample.h over a whole row, compiled once per path.
#pragma once

#include "lanes.h"
#include "sample.h"

namespace r1 {
namespace R1_PATH {

inline float row_maxima(const float* x, int64_t n, float* maxima) {
  const f32x16 none = splat(-std::numeric_limits<float>::infinity());
  f32x16 all = none;
  for (int64_t i = 0; i < n; i += kMaxBlock) {
    f32x16 block = none;
    if (i + kMaxBlock <= n) {
      block = max(load(x + i), block);  // a NaN compares false, and the other is taken
      block = max(load(x + i + 16), block);
    } else {
      float lanes[kMaxBlock];
      for (int64_t j = 0; j < kMaxBlock; ++j) lanes[j] = i + j < n ? x[i + j] : none[0];
      block = max(load(lanes + 16), max(load(lanes), block));
    }
    maxima[i / kMaxBlock] = most_of(block);
    all = max(block, all);
  }
  return most_of(all);
}

template <bool DIVIDE>
R1_INLINE f64x8 chance(f64x8 x, double temperature, double most) {
  if constexpr (DIVIDE) x = x / temperature;  // by 1 it is what it was
  const f64x8 e = exp(x - most);
  return x == x ? e : f64x8{};
}

template <bool DIVIDE>
double chance_sums(const float* x, int64_t n, double temperature, double most, double* sums) {
  double total = 0;
  for (int64_t i = 0; i < n; i += kSumBlock) {
    float last[kSumBlock];
    const float* block = x + i;
    if (i + kSumBlock > n) {
      for (int64_t j = 0; j < kSumBlock; ++j) last[j] = i + j < n ? x[i + j] : -std::numeric_limits<float>::infinity();
      block = last;
    }
    f64x8 a[4] = {};
    for (int64_t j = 0; j < kSumBlock; j += 32)
      for (int c = 0; c < 4; ++c) a[c] += chance<DIVIDE>(load64(block + j + 8 * c), temperature, most);
    sums[i / kSumBlock] = sum((a[0] + a[1]) + (a[2] + a[3]));
    total += sums[i / kSumBlock];
  }
  return total;
}

inline double row_sums(const float* x, int64_t n, double temperature, double most, double* sums) {
  return temperature == 1 ? chance_sums<false>(x, n, temperature, most, sums)
                          : chance_sums<true>(x, n, temperature, most, sums);
}

inline void row_chances(const float* x, int64_t n, double temperature, double most, double* chances) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const f64x8 e = chance<true>(load64(x + i), temperature, most);
    std::memcpy(chances + i, &e, sizeof e);
  }
  if (i == n) return;
  float lanes[8] = {};
  for (int64_t j = i; j < n; ++j) lanes[j - i] = x[j];
  const f64x8 e = chance<true>(load64(lanes), temperature, most);
  for (int64_t j = i; j < n; ++j) chances[j] = e[j - i];
}

inline SampleKernels sample_kernels() { return {row_maxima, row_sums, row_chances}; }

}  // namespace R1_PATH
}  // namespace r1
