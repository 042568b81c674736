// Beside vector.h: loads and stores of fewer than 16 lanes, eight double lanes, and exponentials.
#pragma once

#include <limits>

#include "vector.h"

namespace r1 {
namespace R1_PATH {

// For lambdas, which are functions of their own unless told otherwise.
#define R1_ALWAYS __attribute__((always_inline))
typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x8 __attribute__((vector_size(64)));
typedef int64_t i64x8 __attribute__((vector_size(64)));

typedef float f32x4 __attribute__((vector_size(16)));

// The sum and the largest of all lanes: halves are combined until one is left, whatever the path.
template <class F>
R1_INLINE f32x4 quarter(f32x16 v, F both) {
  const f32x8 a = both(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  return both(__builtin_shufflevector(a, a, 0, 1, 2, 3), __builtin_shufflevector(a, a, 4, 5, 6, 7));
}
R1_INLINE float add_lanes(f32x16 v) {
  const auto both = [](auto a, auto b) { return a + b; };
  const f32x4 q = quarter(v, both);
  return (q[0] + q[2]) + (q[1] + q[3]);
}
R1_INLINE float most_of(f32x16 v) {
  const auto larger = [](auto a, auto b) { return a > b ? a : b; };
  const f32x4 q = quarter(v, larger);
  const float even = q[0] > q[2] ? q[0] : q[2], odd = q[1] > q[3] ? q[1] : q[3];
  return even > odd ? even : odd;
}

R1_INLINE f32x16 load(const int8_t* p) {
#if defined(__AVX512F__)
  __m128i codes;
  std::memcpy(&codes, p, sizeof codes);
  return reinterpret_cast<f32x16>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
#elif defined(__AVX2__)
  __m128i codes[2] = {};
  __m256 wide[2];
  for (int i = 0; i < 2; ++i) {
    std::memcpy(&codes[i], p + 8 * i, 8);
    wide[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes[i]));
  }
  f32x16 v;
  std::memcpy(&v, wide, sizeof v);
  return v;
#else
  f32x16 v;
  for (int i = 0; i < 16; ++i) v[i] = p[i];
  return v;
#endif
}

// The first n of 16 lanes; the others are zero, and their memory is not touched.
template <class T>
R1_INLINE f32x16 load_some(const T* p, int64_t n) {
  if (n >= 16) return load(p);
  T lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
R1_INLINE void store_some(T* p, f32x16 v, int64_t n) {
  if (n >= 16) return store(p, v);
  T lanes[16];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// f(offset, lanes) for every 16 of n elements.
template <class F>
R1_INLINE void each_16(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i, 16);
  if (i < n) f(i, n - i);
}

R1_INLINE f32x16 round_bf16(f32x16 v) {
  uint16_t bits[16];
  store(bits, v);
  return load(bits);
}

// e^x within 2 units in the last place; 0 and infinity where they belong, a NaN stays one.
R1_INLINE f32x16 exp(f32x16 x) {
  x = x > 89.0f ? splat(89.0f) : x;
  x = x < -104.0f ? splat(-104.0f) : x;
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const f32x16 shifted = fma(x, splat(1.44269504f), splat(12582912.0f));
  const f32x16 n = shifted - 12582912.0f;
  i32x16 power;
  std::memcpy(&power, &shifted, sizeof power);
  power -= 0x4B400000;
  f32x16 r = fma(n, splat(-0.693359375f), x);  // few bits, so that the product is exact
  r = fma(n, splat(2.12194440e-4f), r);
  f32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  // In two factors: 2^128 and 2^-150 are no floats, but their halves are.
  const i32x16 half = power >> 1;
  u32x16 bits = reinterpret_cast<u32x16>(half + 127) << 23;
  f32x16 first, second;
  std::memcpy(&first, &bits, sizeof first);
  bits = reinterpret_cast<u32x16>(power - half + 127) << 23;
  std::memcpy(&second, &bits, sizeof second);
  return p * first * second;
}

R1_INLINE f64x8 splat64(double x) { return x - f64x8{}; }

R1_INLINE f64x8 fma(f64x8 a, f64x8 b, f64x8 c) {
#if defined(__AVX512F__)
  return reinterpret_cast<f64x8>(
      _mm512_fmadd_pd(reinterpret_cast<__m512d>(a), reinterpret_cast<__m512d>(b), reinterpret_cast<__m512d>(c)));
#elif defined(__FMA__) && defined(__AVX__)
  __m256d x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  std::memcpy(z, &c, sizeof c);
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_pd(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof c);
  return c;
#else
  return a * b + c;
#endif
}

R1_INLINE f64x8 load64(const float* p) {
  f32x8 v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, f64x8);
}

R1_INLINE double sum(f64x8 v) {
  double lanes[8];
  std::memcpy(lanes, &v, sizeof lanes);
  for (int width = 4; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// e^x in double, within 2 units in the last place.
R1_INLINE f64x8 exp(f64x8 x) {
  x = x > 710.0 ? splat64(710.0) : x;
  x = x < -746.0 ? splat64(-746.0) : x;
  const f64x8 shifted = fma(x, splat64(1.4426950408889634), splat64(6755399441055744.0));
  const f64x8 n = shifted - 6755399441055744.0;
  i64x8 power;
  std::memcpy(&power, &shifted, sizeof power);
  power -= 0x4338000000000000;
  f64x8 r = fma(n, splat64(-6.93145751953125e-1), x);
  r = fma(n, splat64(-1.42860682030941723212e-6), r);
  constexpr double kTerms[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                               1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
  f64x8 p = splat64(1.0 / 6227020800);
  for (const double term : kTerms) p = fma(p, r, splat64(term));
  p = fma(p, r * r, r) + 1.0;
  const i64x8 half = power >> 1;
  const i64x8 first_bits = (half + 1023) << 52, second_bits = (power - half + 1023) << 52;
  f64x8 first, second;
  std::memcpy(&first, &first_bits, sizeof first);
  std::memcpy(&second, &second_bits, sizeof second);
  return p * first * second;
}

}  // namespace R1_PATH
}  // namespace r1
