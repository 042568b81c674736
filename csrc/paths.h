// The instruction-set paths: each is a table of kernels. The generic one is the truth and has them all; the others
// replace what they do better. A path's sources are compiled with its flags, in a namespace of its own.
#pragma once

#include "linear.h"
#include "rows.h"
#include "attention.h"
#include "gradient.h"
#include "sample.h"

namespace r1 {

struct Kernels {
  const char* name;
  void (*prepare)(const PrepareArgs&, int64_t, int64_t);
  void (*linear)(const LinearArgs&, int64_t, int64_t);
  int64_t row_tile;           // rows that `linear` takes at once
  bool tiled;                 // products of all but fp32 weights go through matrix tiles
  RowKernels rows;            // norms, rope, gates …: rows.h
  AttentionKernels attention; // attention.h
  SampleKernels sample;       // sample.h
  GradientKernels gradients;  // gradient.h
};

// Whether the path's product reads its rows as bf16, or for weights with a scale by row as two bytes; both take two bytes
// an element and two Acts a row. Else it reads int8 codes, or for fp32 weights the rows as they are.
inline bool reads_bf16(const Format& f, const Kernels& path) {
  return f.kind == Kind::bf16 || (path.tiled && f.kind != Kind::fp32);
}

Kernels generic_kernels();
bool avx2_kernels(Kernels&);     // replaces entries; false where the CPU or the build lacks the instructions
bool avx512_kernels(Kernels&);
bool amx_kernels(Kernels&);
// Products of matrix tiles alone, as a probe of their peak: so many rounds of so many operations (bytes, else bf16).
void tile_rounds(bool bytes, int64_t rounds);
int64_t tile_ops(bool bytes);

// The best path that this CPU can run, unless `choose` named another.
const Kernels& kernels();
void choose(const char* name);   // "generic", "avx2", "avx512", "amx" or "auto"; throws std::invalid_argument

}  // namespace r1
