// Matrix tiles (AMX): the few instructions that are used, with what a compiler has to know about them.
//
// A product multiplies A (16 rows of 64 bytes) by B (16 rows of 64 bytes: 16 columns, each 4 bytes of k side by side)
// into C (16 rows of 16 columns). A row of C depends on the same row of A alone.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "vector.h"

namespace r1 {
namespace R1_PATH {

alignas(64) inline constexpr float kZeros[256] = {};

// Registers are named by the instruction, so these are macros. All of them are ordered with the memory around them.
#define R1_TILE_LOAD(t, p, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"(static_cast<int64_t>(stride)) : "memory")
#define R1_TILE_STORE(t, p, stride) \
  asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"(static_cast<int64_t>(stride)) : "memory")
// Signed bytes times unsigned ones, and pairs of bf16.
#define R1_TILE_DOT_BYTES(c, a, b) asm volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define R1_TILE_DOT_BF16(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

// Two rows of 16 fp32 lanes -> pairs of bf16, ties away from zero.
R1_INLINE __m512i bf16_pairs(__m512 first, __m512 second) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(first), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(second), half);
  return _mm512_mask_blend_epi16(0xAAAAAAAAu, low, high);
}

// The eight tile registers of the calling thread, 16 rows of 64 bytes each, are ready while this lives.
class TileRegisters {
 public:
  TileRegisters() { rows(16); }
  // Registers 0 to 4 get so many rows, for sums and rows of few; what they held is lost. Fewer rows take less time.
  void rows(int64_t count) {
    if (count == rows_) return;
    rows_ = count;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    for (int t = 0; t < 5; ++t) config.rows[t] = static_cast<uint8_t>(count);
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileRegisters() { asm volatile("tilerelease"); }  // or every switch of threads would save them
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  int64_t rows_ = 0;
};

}  // namespace R1_PATH
}  // namespace r1
