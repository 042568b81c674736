// Kernels over rows: norms, rotation, gates, sums, copies, and the rows of a KV pool. One item of a loop is one row.
//
// A pointer with a `_bf16` flag beside it is to bf16 bits, else to fp32. Strides count elements. Arithmetic is fp32;
// where torch would round an intermediate result to bf16, so do these, so that both give the same values.
#pragma once

#include <cstdint>

#include "pool.h"

namespace r1 {

// out = weight * x / sqrt(mean(x^2) + eps) over rows (tokens, heads) of `dim`. A bf16 weight rounds the row before and
// after the division, and the product, to bf16. In place is allowed.
struct RmsNormArgs {
  const void* x;
  bool x_bf16;
  int64_t tokens, heads, dim, x_token, x_head;
  const void* weight;
  bool weight_bf16;
  float eps;
  void* out;
  bool out_bf16;
  int64_t out_token, out_head;
};
Range rms_norm_range(const RmsNormArgs&);

// cos and signed sin (tokens, 2 * half) of positions * frequencies, times `factor`; the sin's first half is negated.
struct RotaryArgs {
  const int64_t* positions;
  int64_t tokens;
  const float* frequencies;
  int64_t half;
  float factor;
  void* cos;
  void* sin;
  bool table_bf16;
};
Range rotary_range(const RotaryArgs&);

// The first `rotated` columns of each head are turned, the others copied. In place is allowed (same strides).
struct RopeArgs {
  const void* x;
  bool x_bf16;
  int64_t tokens, heads, dim, x_token, x_head;
  const void* cos;
  const void* sin;       // signed, (tokens, rotated), contiguous as cos
  bool table_bf16;       // rounds x and every intermediate result to bf16
  int64_t rotated;
  void* out;
  bool out_bf16;
  int64_t out_token, out_head;
};
Range rope_range(const RopeArgs&);

enum class Gate : int32_t { silu = 0, gelu_tanh = 1 };

// out = activation(gate) * up.
struct GatedArgs {
  Gate gate;
  const void* x;         // what the activation is applied to
  const void* up;
  bool in_bf16;          // both of them; the activation is rounded to bf16 if `out` is bf16 as well
  int64_t rows, dim, x_row, up_row;
  void* out;
  bool out_bf16;
  int64_t out_row;
};
Range gated_range(const GatedArgs&);

// out = x + scale * y. In place is allowed.
struct AddArgs {
  const void* x;
  bool x_bf16;
  const void* y;
  bool y_bf16;           // scale * y is rounded to bf16 if x or y is bf16
  float scale;
  int64_t rows, dim, x_row, y_row;
  void* out;
  bool out_bf16;
  int64_t out_row;
};
Range add_range(const AddArgs&);

// out[i] = scale * x[index[i]], with x rounded to out's type first: copies, casts, gathers, embeddings. The caller
// answers for the index.
struct CopyArgs {
  const void* x;
  bool x_bf16;
  const int64_t* index;  // null: row i itself
  float scale;
  int64_t rows, dim, x_row;
  void* out;
  bool out_bf16;
  int64_t out_row;
};
Range copy_range(const CopyArgs&);

enum class Storage : int32_t { fp32 = 0, bf16 = 1, int8 = 2 };

// A row of a KV pool: [k heads | v heads] (shared: the one k head, whose first columns are the values), and for int8 an
// fp32 scale per k head and per v head behind the codes, aligned to 4 bytes.
struct RowLayout {
  Storage storage;
  int64_t heads, key_dim, value_dim;
  bool shared;
  int64_t element;       // bytes of one
  int64_t values;        // byte at which the first v head begins
  int64_t scales;        // byte at which the scales begin
  int64_t bytes;         // of the row
};
RowLayout row_layout(Storage storage, int64_t heads, int64_t key_dim, int64_t value_dim, bool shared);

// Rows of k and v -> the rows of the pool named by `slots`, rounded to its storage. A negative slot stores nothing.
struct KvWriteArgs {
  const void* k;
  const void* v;         // unused when shared
  bool in_bf16;
  int64_t tokens, k_token, k_head, v_token, v_head;
  const int64_t* slots;
  uint8_t* pool;
  RowLayout layout;
};
Range kv_write_range(const KvWriteArgs&);

struct RowKernels {
  void (*rms_norm)(const RmsNormArgs&, int64_t, int64_t);
  void (*rotary)(const RotaryArgs&, int64_t, int64_t);
  void (*rope)(const RopeArgs&, int64_t, int64_t);
  void (*gated)(const GatedArgs&, int64_t, int64_t);
  void (*add)(const AddArgs&, int64_t, int64_t);
  void (*copy)(const CopyArgs&, int64_t, int64_t);
  void (*kv_write)(const KvWriteArgs&, int64_t, int64_t);
};

}  // namespace r1
