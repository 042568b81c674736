// Python's door to the gradients: addresses as integers, sizes and strides in elements. See gradient.h.
#include <nanobind/nanobind.h>

#include <algorithm>

#include "bind.h"
#include "gradient.h"
#include "paths.h"
#include "step.h"

namespace nb = nanobind;

namespace r1 {
namespace {

using Address = uintptr_t;

void gated_gradient(Address grad, Address gate, Address up, bool bf16, int64_t rows, int64_t dim, int64_t grad_row,
                    int64_t gate_row, int64_t up_row, Address gate_out, Address up_out, int64_t out_row) {
  constexpr const char* kName = "gated_gradient";
  check_sizes(kName, rows, dim);
  check_strides(kName, grad_row, gate_row, up_row, out_row);
  check_apart(kName, rows, out_row, dim);
  const int64_t count = rows * dim;
  const GatedGradientArgs args{at<void>(kName, grad, count), at<void>(kName, gate, count), at<void>(kName, up, count),
                               bf16, rows, dim, grad_row, gate_row, up_row, at<void>(kName, gate_out, count),
                               at<void>(kName, up_out, count), out_row};
  submit(args, gated_gradient_range, kernels().gradients.gated);
}

void norm_gradient(Address grad, bool grad_bf16, int64_t grad_token, int64_t grad_head, Address x, bool x_bf16,
                   int64_t tokens, int64_t heads, int64_t dim, int64_t x_token, int64_t x_head, Address weight,
                   bool weight_bf16, float eps, Address out) {
  constexpr const char* kName = "norm_gradient";
  check_sizes(kName, tokens, heads, dim);
  check_strides(kName, grad_token, grad_head, x_token, x_head);
  const int64_t count = tokens * heads * dim;
  const NormGradientArgs args{at<void>(kName, grad, count), grad_bf16, grad_token, grad_head, at<void>(kName, x, count),
                              x_bf16, tokens, heads, dim, x_token, x_head, at<void>(kName, weight, dim), weight_bf16,
                              eps, at<void>(kName, out, count)};
  submit(args, norm_gradient_range, kernels().gradients.norm);
}

void attention_gradient(Address q, int64_t q_token, int64_t q_head, Address k, int64_t k_token, int64_t k_head, Address v,
                        int64_t v_token, int64_t v_head, Address grad, int64_t grad_token, int64_t grad_head,
                        int64_t tokens, int64_t heads, int64_t kv_heads, int64_t key_dim, int64_t value_dim,
                        Address sequences, int64_t sequence_count, Address families, int64_t family_count,
                        int64_t window, float scale, Address q_out, Address k_out, Address v_out) {
  constexpr const char* kName = "attention_gradient";
  check_sizes(kName, tokens, heads, key_dim);
  check_sizes(kName, tokens, heads, value_dim);
  check_sizes(kName, sequence_count, 2);
  check_sizes(kName, family_count);
  check_strides(kName, q_token, q_head, k_token, k_head);
  check_strides(kName, v_token, v_head, grad_token, grad_head);
  check(kv_heads > 0 && heads > 0 && heads % kv_heads == 0,
        "attention_gradient: the query heads are a multiple of the key heads");
  check(key_dim > 0 && value_dim > 0, "attention_gradient: heads have at least one column");
  check(window >= 0, "attention_gradient: the window is negative");
  const AttentionGradientArgs args{
      at<float>(kName, q, tokens), q_token, q_head, at<float>(kName, k, tokens), k_token, k_head,
      at<float>(kName, v, tokens), v_token, v_head, at<float>(kName, grad, tokens), grad_token, grad_head,
      heads, kv_heads, key_dim, value_dim, at<const int64_t>(kName, sequences, sequence_count),
      at<const int64_t>(kName, families), family_count, window, scale,
      at<float>(kName, q_out, tokens), at<float>(kName, k_out, tokens), at<float>(kName, v_out, tokens)};
  check(args.families[0] == 0 && args.families[family_count] == sequence_count,
        "attention_gradient: the families are not all sequences");
  for (int64_t f = 0; f < family_count; ++f)
    check(args.families[f] <= args.families[f + 1], "attention_gradient: a family ends before it begins");
  for (int64_t s = 0; s < sequence_count; ++s) {
    const int64_t row = args.sequences[2 * s], count = args.sequences[2 * s + 1];
    check(row >= 0 && count >= 0 && row <= tokens && count <= tokens - row,
          "attention_gradient: a sequence has rows beyond q's");
  }
  submit(args, attention_gradient_range, kernels().gradients.attention);
}

// A chunk has 16 thousand elements or so, as those of rows.h.
Range rows_of(int64_t rows, int64_t width) { return {rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width))}; }

}  // namespace

Range gated_gradient_range(const GatedGradientArgs& a) { return rows_of(a.rows, a.dim); }
Range norm_gradient_range(const NormGradientArgs& a) { return rows_of(a.tokens * a.heads, a.dim); }
Range attention_gradient_range(const AttentionGradientArgs& a) { return {a.family_count * a.kv_heads, 1}; }

void bind_gradient(nb::module_& m) {
  const nb::call_guard<nb::gil_scoped_release> free;
  m.def("gated_gradient", &gated_gradient, free);
  m.def("norm_gradient", &norm_gradient, free);
  m.def("attention_gradient", &attention_gradient, free);
}

}  // namespace r1
