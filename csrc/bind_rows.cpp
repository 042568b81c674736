// Python's door to the kernels over rows: addresses as integers, sizes and strides in elements. See rows.h.
#include <nanobind/nanobind.h>

#include <algorithm>

#include "bind.h"
#include "paths.h"
#include "step.h"

namespace nb = nanobind;

namespace r1 {
namespace {

using Address = uintptr_t;

// A chunk has 16 thousand elements or so: a few microseconds.
Range rows_of(int64_t rows, int64_t width, int64_t elements = 16384) {
  return {rows, std::max<int64_t>(1, elements / std::max<int64_t>(1, width))};
}

void rms_norm(Address x, bool x_bf16, int64_t tokens, int64_t heads, int64_t dim, int64_t x_token, int64_t x_head,
              Address weight, bool weight_bf16, float eps, Address out, bool out_bf16, int64_t out_token,
              int64_t out_head) {
  check_sizes("rms_norm", tokens, heads, dim);
  check_strides("rms_norm", x_token, x_head, out_token, out_head);
  check_apart("rms_norm", heads, out_head, dim);
  check_apart("rms_norm", tokens, out_token, heads > 0 ? (heads - 1) * out_head + dim : 0);
  const int64_t count = tokens * heads * dim;
  const RmsNormArgs args{at<void>("rms_norm", x, count), x_bf16, tokens, heads, dim, x_token, x_head,
                         at<void>("rms_norm", weight, dim), weight_bf16, eps,
                         at<void>("rms_norm", out, count), out_bf16, out_token, out_head};
  submit(args, rms_norm_range, kernels().rows.rms_norm);
}

void rotary(Address positions, int64_t tokens, Address frequencies, int64_t half, float factor, Address cos,
            Address sin, bool table_bf16) {
  check_sizes("rotary", tokens, 2, half);
  const int64_t count = tokens * half;
  const RotaryArgs args{at<const int64_t>("rotary", positions, tokens), tokens,
                        at<const float>("rotary", frequencies, half), half, factor,
                        at<void>("rotary", cos, count), at<void>("rotary", sin, count), table_bf16};
  submit(args, rotary_range, kernels().rows.rotary);
}

void rope(Address x, bool x_bf16, int64_t tokens, int64_t heads, int64_t dim, int64_t x_token, int64_t x_head,
          Address cos, Address sin, bool table_bf16, int64_t rotated, Address out, bool out_bf16, int64_t out_token,
          int64_t out_head) {
  check_sizes("rope", tokens, heads, dim);
  check_strides("rope", x_token, x_head, out_token, out_head);
  check(rotated >= 0 && rotated <= dim && rotated % 2 == 0, "rope: an even number of columns is rotated, dim at most");
  check_apart("rope", heads, out_head, dim);
  check_apart("rope", tokens, out_token, heads > 0 ? (heads - 1) * out_head + dim : 0);
  const int64_t count = tokens * heads * dim;
  const RopeArgs args{at<void>("rope", x, count), x_bf16, tokens, heads, dim, x_token, x_head,
                      at<void>("rope", cos, tokens * rotated), at<void>("rope", sin, tokens * rotated), table_bf16,
                      rotated, at<void>("rope", out, count), out_bf16, out_token, out_head};
  submit(args, rope_range, kernels().rows.rope);
}

void gated(int gate, Address x, Address up, bool in_bf16, int64_t rows, int64_t dim, int64_t x_row, int64_t up_row,
           Address out, bool out_bf16, int64_t out_row) {
  check(gate == 0 || gate == 1, "gated: the activation is 0 (silu) or 1 (gelu_tanh)");
  check_sizes("gated", rows, dim);
  check_strides("gated", x_row, up_row, out_row);
  check_apart("gated", rows, out_row, dim);
  const int64_t count = rows * dim;
  const GatedArgs args{static_cast<Gate>(gate), at<void>("gated", x, count), at<void>("gated", up, count), in_bf16,
                       rows, dim, x_row, up_row, at<void>("gated", out, count), out_bf16, out_row};
  submit(args, gated_range, kernels().rows.gated);
}

void add(Address x, bool x_bf16, Address y, bool y_bf16, float scale, int64_t rows, int64_t dim, int64_t x_row,
         int64_t y_row, Address out, bool out_bf16, int64_t out_row) {
  check_sizes("add", rows, dim);
  check_strides("add", x_row, y_row, out_row);
  check_apart("add", rows, out_row, dim);
  const int64_t count = rows * dim;
  const AddArgs args{at<void>("add", x, count), x_bf16, at<void>("add", y, count), y_bf16, scale, rows, dim, x_row,
                     y_row, at<void>("add", out, count), out_bf16, out_row};
  submit(args, add_range, kernels().rows.add);
}

void copy(Address x, bool x_bf16, Address index, float scale, int64_t rows, int64_t dim, int64_t x_row, Address out,
          bool out_bf16, int64_t out_row) {
  check_sizes("copy", rows, dim);
  check_strides("copy", x_row, out_row);
  check_apart("copy", rows, out_row, dim);
  const int64_t count = rows * dim;
  const CopyArgs args{at<void>("copy", x, count), x_bf16, reinterpret_cast<const int64_t*>(index), scale, rows, dim,
                      x_row, at<void>("copy", out, count), out_bf16, out_row};
  submit(args, copy_range, kernels().rows.copy);
}

RowLayout make_layout(int storage, int64_t heads, int64_t key_dim, int64_t value_dim, bool shared) {
  check(storage >= 0 && storage <= 2, "the storage of keys and values is 0 (fp32), 1 (bf16) or 2 (int8)");
  check_sizes("a KV row", 4, heads, key_dim);
  check_sizes("a KV row", 4, heads, value_dim);
  check(heads > 0 && key_dim > 0 && value_dim > 0, "a KV row has at least one head and one column");
  check(!shared || (heads == 1 && value_dim <= key_dim),
        "a shared layout has one key head whose first columns are the values");
  return row_layout(static_cast<Storage>(storage), heads, key_dim, value_dim, shared);
}

void kv_write(Address k, Address v, bool in_bf16, int64_t tokens, int64_t k_token, int64_t k_head, int64_t v_token,
              int64_t v_head, Address slots, Address pool, const RowLayout& layout) {
  check_sizes("kv_write", tokens, layout.bytes);
  check_strides("kv_write", k_token, k_head, v_token, v_head);
  check(layout.shared || v != 0 || tokens == 0, "kv_write: only a shared layout goes without v");
  const KvWriteArgs args{at<void>("kv_write", k, tokens), reinterpret_cast<const void*>(v), in_bf16, tokens, k_token,
                         k_head, v_token, v_head, at<const int64_t>("kv_write", slots, tokens),
                         at<uint8_t>("kv_write", pool, tokens), layout};
  submit(args, kv_write_range, kernels().rows.kv_write);
}

// What the spans say is checked here once; a recorded call trusts what stands in memory when it runs again.
void check_spans(const AttentionArgs& a, int64_t tokens, int64_t blocks, int64_t most_spans, int64_t table_size) {
  check(*a.span_count >= 0 && *a.span_count <= most_spans, "attention: the number of spans is negative or too large");
  for (int64_t s = 0; s < *a.span_count; ++s) {
    const int64_t row = a.spans[s * kSpan], count = a.spans[s * kSpan + 1], start = a.spans[s * kSpan + 2];
    const int64_t place = a.spans[s * kSpan + 3];
    check(row >= 0 && count >= 0 && row <= tokens && count <= tokens - row, "attention: a span has rows beyond q's");
    check(start >= 0 && start < kMost, "attention: a span's position is negative or absurd");
    if (count == 0) continue;
    const int64_t first = a.window > 0 && start >= a.window ? (start - a.window + 1) / a.block_size : 0;
    const int64_t last = (start + count - 1) / a.block_size;
    check(place >= 0 && place <= table_size && last < table_size - place, "attention: a span has no block for a key");
    for (int64_t i = first; i <= last; ++i)
      check(a.tables[place + i] >= 0 && a.tables[place + i] < blocks, "attention: a block id is outside the pool");
  }
}

void attention(Address q, bool q_bf16, int64_t tokens, int64_t heads, int64_t q_token, int64_t q_head, Address pool,
               const RowLayout& layout, int64_t blocks, int64_t block_size, Address span_count, Address spans,
               int64_t most_spans, Address tables, int64_t table_size, int64_t window, float scale, Address out,
               bool out_bf16, Address scratch, int64_t scratch_floats) {
  check_sizes("attention", tokens, heads, layout.key_dim);
  check_sizes("attention", tokens, heads, layout.value_dim);
  check_sizes("attention: pool", blocks, block_size, layout.bytes);
  check_sizes("attention: spans", most_spans, kSpan);
  check_sizes("attention: tables", table_size);
  check_sizes("attention: scratch", scratch_floats);
  check_strides("attention", q_token, q_head);
  check(heads > 0 && heads % layout.heads == 0, "attention: the query heads are a multiple of the key heads");
  check(block_size > 0, "attention: a block has at least one slot");
  check(window >= 0, "attention: the window is negative");
  check(scratch % 64 == 0, "attention: scratch must be aligned to 64 bytes");
  const AttentionArgs args{at<void>("attention: q", q, tokens), q_bf16, heads, q_token, q_head,
                           at<const uint8_t>("attention: pool", pool, blocks), layout, block_size,
                           at<const int64_t>("attention: span_count", span_count),
                           at<const int64_t>("attention: spans", spans, most_spans),
                           at<const int32_t>("attention: tables", tables, table_size), window, scale,
                           at<void>("attention: out", out, tokens), out_bf16,
                           at<float>("attention: scratch", scratch, scratch_floats), scratch_floats};
  check_spans(args, tokens, blocks, most_spans, table_size);
  submit(args, attention_range, kernels().attention.attend);
  submit(args, attention_merge_range, kernels().attention.merge);
}

int64_t scratch_of(int64_t rows, int64_t heads, int64_t value_dim, int64_t length) {
  check_sizes("attention_scratch", rows, heads, value_dim, length);
  return attention_scratch(rows, heads, value_dim, length);
}

}  // namespace

Range rms_norm_range(const RmsNormArgs& a) { return rows_of(a.tokens * a.heads, a.dim); }
Range rotary_range(const RotaryArgs& a) { return rows_of(a.tokens, a.half, 512); }
Range rope_range(const RopeArgs& a) { return rows_of(a.tokens, a.heads * a.dim); }
Range gated_range(const GatedArgs& a) { return rows_of(a.rows, a.dim); }
Range add_range(const AddArgs& a) { return rows_of(a.rows, a.dim, 32768); }
Range copy_range(const CopyArgs& a) { return rows_of(a.rows, a.dim, 32768); }
Range kv_write_range(const KvWriteArgs& a) { return rows_of(a.tokens, a.layout.bytes, 32768); }

RowLayout row_layout(Storage storage, int64_t heads, int64_t key_dim, int64_t value_dim, bool shared) {
  RowLayout l{storage, heads, key_dim, value_dim, shared, 0, 0, 0, 0};
  l.element = storage == Storage::fp32 ? 4 : storage == Storage::bf16 ? 2 : 1;
  l.values = heads * key_dim * l.element;
  const int64_t codes = l.values + (shared ? 0 : heads * value_dim * l.element);
  l.scales = (codes + 3) / 4 * 4;
  l.bytes = storage == Storage::int8 ? l.scales + 4 * heads * (shared ? 1 : 2) : codes;
  return l;
}

void bind_rows(nb::module_& m) {
  const nb::call_guard<nb::gil_scoped_release> free;
  nb::class_<RowLayout>(m, "RowLayout")
      .def("__init__",
           [](RowLayout* self, int storage, int64_t heads, int64_t key_dim, int64_t value_dim, bool shared) {
             new (self) RowLayout(make_layout(storage, heads, key_dim, value_dim, shared));
           })
      .def_ro("nbytes", &RowLayout::bytes);
  m.def("rms_norm", &rms_norm, free);
  m.def("rotary", &rotary, free);
  m.def("rope", &rope, free);
  m.def("gated", &gated, free);
  m.def("add", &add, free);
  m.def("copy", &copy, free);
  m.def("kv_write", &kv_write, free);
  m.def("attention", &attention, free);
  m.def("attention_scratch", &scratch_of);
}

}  // namespace r1
