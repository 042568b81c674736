// The AVX2 path: FMA and F16C too, as every processor with AVX2 but a few has them.
#define R1_PATH avx2
#include "paths.h"

#if defined(__x86_64__) && defined(__AVX2__)
#include "attention_impl.h"
#include "gradient_impl.h"
#include "linear_avx2.h"
#include "rows_impl.h"
#include "sample_impl.h"

namespace r1 {

bool avx2_kernels(Kernels& k) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  k = {"avx2",
       avx2::prepare,
       avx2::linear_avx2,
       3,
       false,
       avx2::row_kernels(),
       avx2::attention_kernels(),
       avx2::sample_kernels(),
       avx2::gradient_kernels()};
  return true;
}

}  // namespace r1
#else
namespace r1 {
bool avx2_kernels(Kernels&) { return false; }
}  // namespace r1
#endif
