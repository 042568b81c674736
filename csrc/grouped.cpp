// Cuts the items of a stack of products into those of its members, which the path's own product then computes.
#define R1_PATH grouping
#include "grouped.h"

#include <algorithm>

#include "linear_generic.h"

namespace r1 {
namespace {

const uint8_t* moved(const void* x, int64_t bytes) { return static_cast<const uint8_t*>(x) + bytes; }
uint8_t* moved(void* x, int64_t bytes) { return static_cast<uint8_t*>(x) + bytes; }

// Bytes of a row of what the product reads, where it was prepared.
int64_t row_bytes(const Format& f, int64_t k, bool bf16) { return f.padded_k(k) * (bf16 ? 2 : 1); }

}  // namespace

Range head_prepare_range(const HeadPrepareArgs& a) {
  return {a.heads * a.tokens, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, a.k))};
}

void head_prepare(const HeadPrepareArgs& a, int64_t begin, int64_t end) {
  const int64_t groups = a.to_bf16 ? 2 : a.format.groups(a.k);
  while (begin < end) {
    const int64_t head = begin / a.tokens, first = begin % a.tokens, row = head * a.tokens;
    const int64_t last = std::min(a.tokens, first + end - begin);
    const PrepareArgs part{moved(a.x, head * a.x_head * (a.x_bf16 ? 2 : 4)), a.x_bf16, a.tokens, a.k, a.x_token,
                           a.format, a.to_bf16, false, moved(a.codes, row * row_bytes(a.format, a.k, a.to_bf16)),
                           a.act == nullptr ? nullptr : a.act + row * groups};
    a.prepare(part, first, last);
    begin += last - first;
  }
}

Range head_linear_range(const HeadLinearArgs& a) {
  const Range one = linear_range({a.weight.first, nullptr, a.tokens, 0, nullptr, false, a.row_tile, nullptr, nullptr, false, 0});
  return {one.items * a.weight.count, one.grain};
}

void head_linear(const HeadLinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.first.format;
  const int64_t items = linear_items(a.tokens, a.weight.first, a.row_tile);
  const bool direct = f.kind == Kind::fp32;
  const int64_t groups = a.bf16 ? 2 : f.groups(a.weight.first.k);
  const int64_t x_head = direct ? a.x_head * 4 : a.tokens * row_bytes(f, a.weight.first.k, a.bf16);
  while (begin < end) {
    const int64_t head = begin / items, first = begin % items, last = std::min(items, first + end - begin);
    const LinearArgs part{a.weight.at(head), moved(a.x, head * x_head), a.tokens, a.x_token,
                          a.act == nullptr ? nullptr : a.act + head * a.tokens * groups,
                          false, a.row_tile, nullptr,
                          moved(a.out, head * a.out_head * (a.out_bf16 ? 2 : 4)), a.out_bf16, a.out_token};
    a.linear(part, first, last);
    begin += last - first;
  }
}

Range expert_linear_range(const ExpertLinearArgs& a) {
  int64_t items = 0, used = 0, start = 0;
  for (int64_t e = 0; e < a.weight.count; start = a.ends[e++]) {
    items += linear_items(a.ends[e] - start, a.weight.first, a.row_tile);
    used += a.ends[e] > start;
  }
  if (used == 0) return {0, 1};
  const int64_t rows = (a.rows + used - 1) / used;
  const Range one = linear_range({a.weight.first, nullptr, rows, 0, nullptr, false, a.row_tile, nullptr, nullptr, false, 0});
  return {items, one.grain};
}

void expert_linear(const ExpertLinearArgs& a, int64_t begin, int64_t end) {
  const Format& f = a.weight.first.format;
  const int64_t groups = a.bf16 ? 2 : f.groups(a.weight.first.k);
  const int64_t x_row = f.kind == Kind::fp32 ? a.ldx * 4 : row_bytes(f, a.weight.first.k, a.bf16);
  int64_t item = 0, start = 0;  // of expert e
  for (int64_t e = 0; e < a.weight.count && begin < end; ++e) {
    const int64_t rows = a.ends[e] - start;
    const int64_t items = linear_items(rows, a.weight.first, a.row_tile);
    if (begin < item + items) {
      const int64_t last = std::min(items, end - item);
      const LinearArgs part{a.weight.at(e), moved(a.x, start * x_row), rows, a.ldx,
                            a.act == nullptr ? nullptr : a.act + start * groups,
                            false, a.row_tile, nullptr,
                            moved(a.out, start * a.ldo * (a.out_bf16 ? 2 : 4)), a.out_bf16, a.ldo};
      a.linear(part, begin - item, last);
      begin = item + last;
    }
    item += items;
    start = a.ends[e];
  }
}

}  // namespace r1
