// The generic path: plain C++ for any processor, and the choice of the path that is used.
#define R1_PATH generic
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#include "attention_impl.h"
#include "linear_generic.h"
#include "paths.h"
#include "rows_impl.h"
#include "sample_impl.h"

namespace r1 {
namespace {

Kernels best(const char* name) {
  const bool any = std::strcmp(name, "auto") == 0;
  Kernels found = generic_kernels();
  if (std::strcmp(name, "generic") == 0) return found;
  if (any || std::strcmp(name, "avx2") == 0) {
    const bool there = avx2_kernels(found);
    if (!any && !there) throw std::invalid_argument("this processor or this build has no path avx2");
    if (!any) return found;
  }
  if (any || std::strcmp(name, "avx512") == 0) {
    const bool there = avx512_kernels(found);
    if (!any && !there) throw std::invalid_argument("this processor or this build has no path avx512");
    return found;
  }
  throw std::invalid_argument(std::string("there is no path ") + name + ": generic, avx2, avx512 or auto");
}

Kernels& current() {
  static Kernels chosen = best("auto");
  return chosen;
}

}  // namespace

Kernels generic_kernels() {
  return {"generic",
          generic::prepare,
          generic::linear_generic,
          generic::row_kernels(),
          generic::attention_kernels(),
          generic::sample_kernels()};
}

const Kernels& kernels() { return current(); }
void choose(const char* name) { current() = best(name); }

Range prepare_range(const PrepareArgs& a) { return {a.m, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, a.k))}; }

Range linear_range(const LinearArgs& a) {
  const int64_t rows = row_block(a.m, a.weight.panels()), blocks = row_blocks(a.m, a.weight.panels());
  // A chunk reads 16 KiB of weights or more, or multiplies for 5 microseconds or more.
  const int64_t bytes = std::max<int64_t>(1, a.weight.panel_bytes());
  const int64_t work = std::max<int64_t>(1, std::min(a.m, rows) * a.weight.k * kPanel);
  const int64_t grain = std::min((16384 + bytes - 1) / bytes, (2'000'000 + work - 1) / work);
  return {a.weight.panels() * blocks, std::max<int64_t>(1, grain)};
}

Range pack_range(const PackArgs& a) { return {a.count, std::max<int64_t>(1, 65536 / std::max<int64_t>(1, a.weight.k))}; }
Range unpack_range(const UnpackArgs& a) { return {a.m, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, a.weight.k))}; }

}  // namespace r1
