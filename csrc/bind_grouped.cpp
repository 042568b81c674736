// Python's door to stacks of products and to the routing of experts: see grouped.h and route.h.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <limits>

#include "bind.h"
#include "grouped.h"
#include "paths.h"
#include "route.h"
#include "step.h"

namespace nb = nanobind;

namespace r1 {
namespace {

using Address = uintptr_t;

Stack make_stack(const Weight& first, int64_t count, Address data, int64_t bytes) {
  check_sizes("a stack of weights", count, first.n, first.k);
  check(count > 0, "a stack has at least one weight");
  const Stack stack{{reinterpret_cast<const uint8_t*>(data), first.n, first.k, first.format, first.exponent}, count};
  check(data == 0 || bytes == count * stack.stride(), "the packed data has another size than its stack asks for");
  check(data % kAlign == 0, "packed data must be aligned to 64 bytes");
  return stack;
}

// What the product reads: x itself for fp32 weights, else the codes that are prepared from it.
const void* read(const Format& f, Address x, bool x_bf16, Address codes, Address act) {
  if (f.kind == Kind::fp32) {
    check(!x_bf16, "an fp32 product takes fp32 rows");
    return reinterpret_cast<const void*>(x);
  }
  check(codes != 0 && (f.group == 0 || act != 0), "a product has no room for its codes");
  return reinterpret_cast<const void*>(codes);
}

void head_linear_of(const Stack& w, Address x, bool x_bf16, int64_t tokens, int64_t x_token, int64_t x_head,
                    Address codes, Address act, Address out, bool out_bf16, int64_t out_token, int64_t out_head) {
  const int64_t n = w.first.n, k = w.first.k;
  check_sizes("head_linear", tokens, w.count, k);
  check_sizes("head_linear", tokens, w.count, n);
  check_strides("head_linear", x_token, x_head, out_token, out_head);
  check_apart("head_linear", w.count, out_head, n);
  check_apart("head_linear", tokens, out_token, (w.count - 1) * out_head + n);
  check(w.first.data != nullptr, "head_linear: the weight has no data");
  if (tokens == 0) return;
  const Format& f = w.first.format;
  const Kernels& path = kernels();
  const void* from = read(f, x, x_bf16, codes, act);
  Act* acts = reinterpret_cast<Act*>(act);
  const bool bf16 = reads_bf16(f, path);
  if (f.kind != Kind::fp32) {
    const HeadPrepareArgs prepare{at<const void>("head_linear: x", x), x_bf16, tokens, w.count, k, x_token, x_head, f, bf16,
                                  reinterpret_cast<void*>(codes), acts, path.prepare};
    submit(prepare, head_prepare_range, head_prepare);
  }
  check(from != nullptr, "head_linear: the address is null");
  const HeadLinearArgs args{w, from, tokens, x_token, x_head, acts, bf16, path.row_tile,
                            at<void>("head_linear: out", out), out_bf16, out_token, out_head, path.linear};
  submit(args, head_linear_range, head_linear);
}

// What `ends` say is checked here once; a recorded call trusts what stands in memory when it runs again.
void expert_linear_of(const Stack& w, Address ends, Address x, bool x_bf16, int64_t rows, int64_t ldx, Address codes,
                      Address act, Address out, bool out_bf16, int64_t ldo) {
  const int64_t n = w.first.n, k = w.first.k;
  check_sizes("expert_linear", rows, k);
  check_sizes("expert_linear", rows, n);
  check_strides("expert_linear", ldx, ldo);
  check_apart("expert_linear", rows, ldx, k);
  check_apart("expert_linear", rows, ldo, n);
  check(w.first.data != nullptr, "expert_linear: the weight has no data");
  const int32_t* to = at<const int32_t>("expert_linear: ends", ends);
  for (int64_t e = 0, start = 0; e < w.count; start = to[e++])
    check(to[e] >= start, "expert_linear: the ends of the experts' rows do not ascend");
  check(to[w.count - 1] == rows, "expert_linear: the last expert's rows do not end with the rows");
  if (rows == 0) return;
  const Format& f = w.first.format;
  const Kernels& path = kernels();
  const void* from = read(f, x, x_bf16, codes, act);
  Act* acts = reinterpret_cast<Act*>(act);
  const bool bf16 = reads_bf16(f, path);
  if (f.kind != Kind::fp32) {
    const PrepareArgs prepare{at<const void>("expert_linear: x", x), x_bf16, rows, k, ldx, f, bf16, false,
                              reinterpret_cast<void*>(codes), acts};
    submit(prepare, prepare_range, path.prepare);
  }
  check(from != nullptr, "expert_linear: the address is null");
  const ExpertLinearArgs args{w, to, from, rows, ldx, acts, bf16, path.row_tile,
                              at<void>("expert_linear: out", out), out_bf16, ldo, path.linear};
  submit(args, expert_linear_range, expert_linear);
}

void scores_of(Address logits, int64_t tokens, int64_t experts, int64_t stride, bool sigmoid, Address out) {
  check_sizes("scores", tokens, experts);
  check_strides("scores", stride);
  check(experts > 0, "scores: there is at least one expert");
  submit(ScoresArgs{at<const float>("scores: logits", logits, tokens), tokens, experts, stride, sigmoid,
                    at<float>("scores: out", out, tokens)},
         scores_range, scores);
}

void route_of(Address scores, int64_t tokens, int64_t experts, int64_t stride, Address bias, int64_t active,
              int64_t groups, int64_t active_groups, Address chosen) {
  check_sizes("route", tokens, experts);
  check_strides("route", stride);
  check(groups > 0 && groups <= experts && experts % groups == 0, "route: the groups do not divide the experts");
  check(active_groups > 0 && active_groups <= groups, "route: there are 1 to `groups` active groups");
  check(active > 0 && active <= experts / groups * (groups > 1 ? active_groups : 1),
        "route: more experts are active than there are to choose from");
  check(groups == 1 || bias == 0 || experts / groups > 1, "route: a group judged by its best two has two experts");
  submit(RouteArgs{at<const float>("route: scores", scores, tokens), tokens, experts, stride,
                   reinterpret_cast<const float*>(bias), active, groups, active_groups,
                   at<int64_t>("route: chosen", chosen, tokens)},
         route_range, route);
}

// Every id names one of `experts`.
const int64_t* ids_of(const char* what, Address chosen, int64_t count, int64_t experts) {
  const int64_t* ids = at<const int64_t>(what, chosen, count);
  for (int64_t i = 0; i < count; ++i)
    check(ids[i] >= 0 && ids[i] < experts, std::string(what) + ": there is no such expert");
  return ids;
}

void route_weights_of(Address scores, int64_t tokens, int64_t experts, int64_t stride, Address chosen, int64_t active,
                      bool normalise, float scale, Address weights) {
  check_sizes("route_weights", tokens, experts);
  check_sizes("route_weights", tokens, active);
  check_strides("route_weights", stride);
  submit(RouteWeightsArgs{at<const float>("route_weights: scores", scores, tokens), tokens, experts, stride,
                          ids_of("route_weights", chosen, tokens * active, experts), active, normalise, scale,
                          at<float>("route_weights: weights", weights, tokens)},
         route_weights_range, route_weights);
}

void by_expert_of(Address chosen, int64_t tokens, int64_t active, int64_t experts, Address sources, Address places,
                  Address ends, Address totals) {
  check_sizes("by_expert", tokens, active);
  check_sizes("by_expert", experts);
  check(tokens * active <= std::numeric_limits<int32_t>::max(), "by_expert: there are more rows than int32 counts");
  submit(ByExpertArgs{ids_of("by_expert", chosen, tokens * active, experts), tokens, active, experts,
                      at<int64_t>("by_expert: sources", sources, tokens * active),
                      at<int64_t>("by_expert: places", places, tokens * active),
                      at<int32_t>("by_expert: ends", ends, experts), at<int64_t>("by_expert: totals", totals, experts)},
         by_expert_range, by_expert);
}

void combine_of(Address x, bool x_bf16, int64_t rows, int64_t dim, int64_t x_row, Address places, Address weights,
                int64_t tokens, int64_t active, Address out) {
  check_sizes("combine", rows, dim);
  check_sizes("combine", tokens, dim);
  check_sizes("combine", tokens, active);
  check_strides("combine", x_row);
  check(active > 0, "combine: at least one row is added up");
  const int64_t* to = at<const int64_t>("combine: places", places, tokens);
  for (int64_t i = 0; i < tokens * active; ++i) check(to[i] >= 0 && to[i] < rows, "combine: there is no such row");
  submit(CombineArgs{at<const void>("combine: x", x, tokens * dim), x_bf16, dim, x_row, to,
                     at<const float>("combine: weights", weights, tokens), tokens, active,
                     at<float>("combine: out", out, tokens * dim)},
         combine_range, combine);
}

}  // namespace

void bind_grouped(nb::module_& m) {
  const nb::call_guard<nb::gil_scoped_release> free;
  nb::class_<Stack>(m, "Stack")
      .def("__init__", [](Stack* self, const Weight& first, int64_t count, Address data,
                          int64_t bytes) { new (self) Stack(make_stack(first, count, data, bytes)); })
      .def_prop_ro("nbytes", [](const Stack& w) { return w.count * w.stride(); });
  m.def("head_linear", &head_linear_of, free);
  m.def("expert_linear", &expert_linear_of, free);
  m.def("scores", &scores_of, free);
  m.def("route", &route_of, free);
  m.def("route_weights", &route_weights_of, free);
  m.def("by_expert", &by_expert_of, free);
  m.def("combine", &combine_of, free);
}

}  // namespace r1
