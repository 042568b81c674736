// Sixteen float lanes, by the compiler's vector extension: one source for every path, split to the width it has.
// Lanes are combined in a fixed tree (lanes.h), so a sum does not depend on the path's register width.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define R1_INLINE inline __attribute__((always_inline))

namespace r1 {
namespace R1_PATH {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

R1_INLINE f32x16 splat(float x) { return x - f32x16{}; }
R1_INLINE f32x16 load(const float* p) { f32x16 v; std::memcpy(&v, p, sizeof v); return v; }
R1_INLINE void store(float* p, f32x16 v) { std::memcpy(p, &v, sizeof v); }

R1_INLINE f32x16 load(const uint16_t* p) {  // bf16 bits
#if defined(__AVX512F__)
  __m256i half;
  std::memcpy(&half, p, sizeof half);
  return reinterpret_cast<f32x16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#else
  u16x16 v;
  std::memcpy(&v, p, sizeof v);
  u32x16 wide = __builtin_convertvector(v, u32x16) << 16;
  return reinterpret_cast<f32x16>(wide);
#endif
}
// To the nearest bf16, ties to even; a NaN stays a NaN.
R1_INLINE uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
R1_INLINE float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
R1_INLINE void store(uint16_t* p, f32x16 v) {
  u32x16 bits;
  std::memcpy(&bits, &v, sizeof v);
  const u32x16 rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const u32x16 quiet = (bits >> 16) | 0x40;
  const i32x16 nan = (bits & 0x7FFFFFFF) > 0x7F800000;
  const u32x16 chosen = nan ? quiet : rounded;
  const u16x16 narrow = __builtin_convertvector(chosen, u16x16);
  std::memcpy(p, &narrow, sizeof narrow);
}
template <class T> R1_INLINE float get(const T* p);
template <> R1_INLINE float get(const float* p) { return *p; }
template <> R1_INLINE float get(const uint16_t* p) { return from_bf16(*p); }
R1_INLINE void put(float* p, float x) { *p = x; }
R1_INLINE void put(uint16_t* p, float x) { *p = to_bf16(x); }

// a * b + c, in one rounding where the path has the instruction.
R1_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return reinterpret_cast<f32x16>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__) && defined(__AVX__)
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
  std::memcpy(z, &c, sizeof c);
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof c);
  return c;
#else
  return a * b + c;
#endif
}

R1_INLINE f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
R1_INLINE uint32_t max(u32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epu32(reinterpret_cast<__m512i>(v));
#else
  uint32_t lanes[16];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
#endif
}
R1_INLINE int32_t sum(i32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v));
#else
  int32_t lanes[16];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

}  // namespace R1_PATH
}  // namespace r1
