// The generic path: plain C++ for any processor, and the choice of the path that is used.
#define R1_PATH generic
#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>

#include "attention_impl.h"
#include "gradient_impl.h"
#include "linear_generic.h"
#include "paths.h"
#include "rows_impl.h"
#include "sample_impl.h"

namespace r1 {
namespace {

// The named path, or with "auto" the last of these that the processor and the build have.
Kernels best(const std::string& name) {
  using Replace = bool (*)(Kernels&);
  constexpr std::pair<const char*, Replace> kPaths[] = {
      {"avx2", avx2_kernels}, {"avx512", avx512_kernels}, {"amx", amx_kernels}};
  Kernels found = generic_kernels();
  if (name == "generic") return found;
  for (const auto& [path, replace] : kPaths) {
    if (name != "auto" && name != path) continue;
    const bool there = replace(found);
    if (name == "auto") continue;
    if (!there) throw std::invalid_argument("this processor or this build has no path " + name);
    return found;
  }
  if (name != "auto") throw std::invalid_argument("there is no path " + name + ": generic, avx2, avx512, amx or auto");
  return found;
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
          3,
          false,
          generic::row_kernels(),
          generic::attention_kernels(),
          generic::sample_kernels(),
          generic::gradient_kernels()};
}

const Kernels& kernels() { return current(); }
void choose(const char* name) { current() = best(name); }

Range prepare_range(const PrepareArgs& a) { return {a.m, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, a.k))}; }

constexpr int64_t kLeastChunks = 16, kMostChunk = 1 << 19;

Range linear_range(const LinearArgs& a) {
  const int64_t rows = row_block(a.m, a.weight, a.row_tile), blocks = row_blocks(a.m, a.weight, a.row_tile);
  const int64_t panels = a.gate == kNoGate ? panel_items(a.m, a.weight, a.row_tile) : a.weight.panels() / 2;
  // A chunk reads 16 KiB of weights or more, or multiplies for 5 microseconds or more. Where there are many, it reads
  // panels that lie one behind the other: what a thread asked for ahead is then its own.
  const int64_t bytes = std::max<int64_t>(1, a.weight.panel_bytes());
  const int64_t work = std::max<int64_t>(1, std::min(a.m, rows) * a.weight.k * kPanel);
  const int64_t least = std::min((16384 + bytes - 1) / bytes, (2'000'000 + work - 1) / work);
  const int64_t most = blocks > 1 ? 1 : std::min(panels / kLeastChunks, kMostChunk / bytes);
  return {panels * blocks, std::max<int64_t>({1, least, most})};
}

Range pack_range(const PackArgs& a) { return {a.count, std::max<int64_t>(1, 65536 / std::max<int64_t>(1, a.weight.k))}; }
Range unpack_range(const UnpackArgs& a) { return {a.m, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, a.weight.k))}; }

}  // namespace r1
