// Gradients that training asks for where torch's formulae would take more passes over memory: see kernels/gradients.py.
//
// Arithmetic is fp32. Every number is one sum in a fixed order, whatever the threads do.
#pragma once

#include "rows.h"

namespace r1 {

// Of silu(gate) * up: gate_out = grad * up * silu'(gate), up_out = grad * silu(gate). All of one type.
struct GatedGradientArgs {
  const void* grad;
  const void* gate;
  const void* up;
  bool bf16;
  int64_t rows, dim, grad_row, gate_row, up_row;
  void* gate_out;
  void* up_out;
  int64_t out_row;
};
Range gated_gradient_range(const GatedGradientArgs&);

// Of rms_norm, for x: (g - x * mean(g * x) / mean(x^2)) / rms(x) with g = grad * weight. `out` is contiguous, of x's type.
struct NormGradientArgs {
  const void* grad;
  bool grad_bf16;
  int64_t grad_token, grad_head;
  const void* x;
  bool x_bf16;
  int64_t tokens, heads, dim, x_token, x_head;
  const void* weight;
  bool weight_bf16;
  float eps;
  void* out;
};
Range norm_gradient_range(const NormGradientArgs&);

// Of causal attention over sequences laid end to end, all fp32. Sequences come in families: those after a family's first
// go on from the end of the first one, each on its own, so that what they begin with alike is there once.
struct AttentionGradientArgs {
  const float* q;              // (tokens, heads, key_dim)
  int64_t q_token, q_head;
  const float* k;              // (tokens, kv_heads, key_dim)
  int64_t k_token, k_head;
  const float* v;              // (tokens, kv_heads, value_dim)
  int64_t v_token, v_head;
  const float* grad;           // (tokens, heads, value_dim)
  int64_t grad_token, grad_head;
  int64_t heads, kv_heads, key_dim, value_dim;
  const int64_t* sequences;    // (n, 2): first row, rows
  const int64_t* families;     // (family_count + 1): the number of each one's first sequence; the last is n
  int64_t family_count;
  int64_t window;              // a query sees that many positions, its own included; 0: all
  float scale;
  float* q_out;                // contiguous, as are the others; rows of no sequence are left alone
  float* k_out;
  float* v_out;
};
Range attention_gradient_range(const AttentionGradientArgs&);

struct GradientKernels {
  void (*gated)(const GatedGradientArgs&, int64_t, int64_t);
  void (*norm)(const NormGradientArgs&, int64_t, int64_t);
  void (*attention)(const AttentionGradientArgs&, int64_t, int64_t);
};

}  // namespace r1
