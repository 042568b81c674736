// The AMX path: what the AVX-512 path is, with matrix tiles (Sapphire Rapids and later).
#define R1_PATH amx
#include "paths.h"

#if defined(__x86_64__) && defined(__AVX512FP16__) && defined(__AMX_BF16__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attention_amx.h"
#include "gradient_impl.h"
#include "linear_amx.h"
#include "rows_impl.h"
#include "sample_impl.h"

namespace r1 {
namespace {

bool has_tiles() {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kWanted = 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;  // AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8
  if ((edx & kWanted) != kWanted) return false;
  // Their registers are large, so a process has to ask for them (once; its threads have them too).
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

}  // namespace

bool amx_kernels(Kernels& k) {
  Kernels base = k;
  if (!avx512_kernels(base) || !has_tiles()) return false;
  k = {"amx",
       amx::prepare_amx,
       amx::linear_amx,
       kTileRows,
       true,
       amx::row_kernels(),
       {amx::attend_amx, amx::merge_amx},
       amx::sample_kernels(),
       amx::gradient_kernels()};
  return true;
}

void tile_rounds(bool bytes, int64_t rounds) {
  // Operands with bits in them: with zeros the clock is higher than any real product sees.
  alignas(64) uint8_t data[4][1024];
  for (int i = 0; i < 4096; ++i) data[i / 1024][i % 1024] = static_cast<uint8_t>(i % 2 != 0 ? 0x3F | (i & 0x80) : i * 37);
  amx::TileRegisters registers;
  R1_TILE_LOAD(0, amx::kZeros, 64); R1_TILE_LOAD(1, amx::kZeros, 64);
  R1_TILE_LOAD(2, amx::kZeros, 64); R1_TILE_LOAD(3, amx::kZeros, 64);
  R1_TILE_LOAD(4, data[0], 64); R1_TILE_LOAD(5, data[1], 64); R1_TILE_LOAD(6, data[2], 64); R1_TILE_LOAD(7, data[3], 64);
  for (int64_t i = 0; i < rounds; ++i) {
    if (bytes) {
      R1_TILE_DOT_BYTES(0, 4, 6); R1_TILE_DOT_BYTES(1, 4, 7); R1_TILE_DOT_BYTES(2, 5, 6); R1_TILE_DOT_BYTES(3, 5, 7);
    } else {
      R1_TILE_DOT_BF16(0, 4, 6); R1_TILE_DOT_BF16(1, 4, 7); R1_TILE_DOT_BF16(2, 5, 6); R1_TILE_DOT_BF16(3, 5, 7);
    }
  }
}
int64_t tile_ops(bool bytes) { return 4 * 2 * 16 * 16 * (bytes ? 64 : 32); }

}  // namespace r1
#else
namespace r1 {
bool amx_kernels(Kernels&) { return false; }
void tile_rounds(bool, int64_t) {}
int64_t tile_ops(bool) { return 1; }
}  // namespace r1
#endif
