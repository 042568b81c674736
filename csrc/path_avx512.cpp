// The AVX-512 path: processors with VNNI and BF16 (Zen 4, Cooper Lake, Sapphire Rapids and later).
#define R1_PATH avx512
#include "paths.h"

#if defined(__x86_64__) && defined(__AVX512BF16__)
#include "attention_impl.h"
#include "gradient_impl.h"
#include "linear_avx512.h"
#include "rows_impl.h"
#include "sample_impl.h"

namespace r1 {

bool avx512_kernels(Kernels& k) {
  for (const bool has : {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
                         __builtin_cpu_supports("avx512vl") != 0, __builtin_cpu_supports("avx512dq") != 0,
                         __builtin_cpu_supports("avx512vnni") != 0, __builtin_cpu_supports("avx512bf16") != 0})
    if (!has) return false;
  k = {"avx512",
       avx512::prepare,
       avx512::linear_avx512,
       avx512::kRowTile,
       false,
       avx512::row_kernels(),
       avx512::attention_kernels(),
       avx512::sample_kernels(),
       avx512::gradient_kernels()};
  return true;
}

}  // namespace r1
#else
namespace r1 {
bool avx512_kernels(Kernels&) { return false; }
}  // namespace r1
#endif
