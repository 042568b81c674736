// The AMX path: what the AVX-512 path is, with matrix tiles (Sapphire Rapids and later).
#define R1_PATH amx
#include "paths.h"

#if defined(__x86_64__) && defined(__AVX512FP16__) && defined(__AMX_BF16__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attention_amx.h"
#include "linear_amx.h"
#include "rows_impl.h"
#include "sample_impl.h"

namespace r1 {
namespace {

bool has_tiles() {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kWanted = 1u << 22 | 1u << 23 | 1u << 24;  // AMX-BF16, AVX512-FP16, AMX-TILE
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
       amx::sample_kernels()};
  return true;
}

}  // namespace r1
#else
namespace r1 {
bool amx_kernels(Kernels&) { return false; }
}  // namespace r1
#endif
