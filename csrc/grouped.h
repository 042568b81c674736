// Products with many weights of one shape: one per head of every token, or one per expert over rows sorted by expert.
// Each weight's part is the packed product of linear.h, item for item, so a row gets the same bits here and there.
#pragma once

#include <cstdint>

#include "linear.h"

namespace r1 {

// `count` weights, one packed form behind the other.
struct Stack {
  Weight first;
  int64_t count;

  int64_t stride() const { return first.format.bytes(first.n, first.k); }
  Weight at(int64_t i) const { return {first.data + i * stride(), first.n, first.k, first.format, first.exponent}; }
};

// x (tokens, heads, k) -> what the product reads, head by head: codes (heads, tokens, padded k), act (heads, tokens,
// groups). One item is one row.
struct HeadPrepareArgs {
  const void* x;
  bool x_bf16;
  int64_t tokens, heads, k, x_token, x_head;
  Format format;
  bool to_bf16;
  void* codes;
  Act* act;
  void (*prepare)(const PrepareArgs&, int64_t, int64_t);
};
Range head_prepare_range(const HeadPrepareArgs&);
void head_prepare(const HeadPrepareArgs&, int64_t begin, int64_t end);

// out[t, h] = weight h @ x[t, h].
struct HeadLinearArgs {
  Stack weight;
  const void* x;         // what head_prepare left, or fp32 with these distances
  int64_t tokens, x_token, x_head;
  const Act* act;
  bool bf16;             // what is read is bf16: see reads_bf16
  int64_t row_tile;
  void* out;
  bool out_bf16;
  int64_t out_token, out_head;
  void (*linear)(const LinearArgs&, int64_t, int64_t);
};
Range head_linear_range(const HeadLinearArgs&);
void head_linear(const HeadLinearArgs&, int64_t begin, int64_t end);

// Rows ends[e - 1] to ends[e] of out (rows, n) = those of x @ weight e ^T. `ends` ascend to `rows`; they are read when
// the product runs.
struct ExpertLinearArgs {
  Stack weight;
  const int32_t* ends;
  const void* x;         // as LinearArgs has it
  int64_t rows, ldx;
  const Act* act;
  bool bf16;             // what is read is bf16: see reads_bf16
  int64_t row_tile;
  void* out;
  bool out_bf16;
  int64_t ldo;
  void (*linear)(const LinearArgs&, int64_t, int64_t);
};
Range expert_linear_range(const ExpertLinearArgs&);
void expert_linear(const ExpertLinearArgs&, int64_t begin, int64_t end);

}  // namespace r1
