// Python's door to sampling: addresses as integers, sizes and strides in elements. See sample.h.
#include <nanobind/nanobind.h>

#include "bind.h"
#include "sample.h"
#include "step.h"

namespace nb = nanobind;

namespace r1 {
namespace {

using Address = uintptr_t;

LogitRows rows_in(Address logits, int64_t rows, int64_t vocabulary, int64_t stride, Address index) {
  check_sizes("logits", rows, vocabulary);
  check_strides("logits", stride);
  check(vocabulary > 0, "logits: the vocabulary is empty");
  return {at<const float>("logits", logits, rows), rows, vocabulary, stride, reinterpret_cast<const int64_t*>(index)};
}

void bound_argmax(Address logits, int64_t rows, int64_t vocabulary, int64_t stride, Address index, Address out) {
  submit(ArgmaxArgs{rows_in(logits, rows, vocabulary, stride, index), at<int64_t>("argmax", out, rows)}, argmax_range,
         argmax);
}

void bound_log_sum_exp(Address logits, int64_t rows, int64_t vocabulary, int64_t stride, Address index, Address out) {
  submit(LogSumExpArgs{rows_in(logits, rows, vocabulary, stride, index), at<double>("log_sum_exp", out, rows)},
         log_sum_exp_range, log_sum_exp);
}

void bound_logprobs(Address logits, int64_t rows, int64_t vocabulary, int64_t stride, Address index, Address tokens,
                    Address out, int64_t count, Address top_ids, Address top_logprobs) {
  const LogitRows in = rows_in(logits, rows, vocabulary, stride, index);
  check(count >= 0 && count <= vocabulary, "logprobs: the count is negative or above the vocabulary");
  const int64_t* chosen = at<const int64_t>("logprobs: tokens", tokens, rows);
  for (int64_t i = 0; i < rows; ++i)
    check(chosen[i] >= 0 && chosen[i] < vocabulary, "logprobs: a token is outside the vocabulary");
  submit(LogprobsArgs{in, chosen, at<double>("logprobs", out, rows), count,
                      at<int64_t>("logprobs: ids", top_ids, rows * count),
                      at<double>("logprobs: values", top_logprobs, rows * count)},
         logprobs_range, logprobs);
}

void bound_draw(Address logits, int64_t rows, int64_t vocabulary, int64_t stride, Address index, Address temperature,
                Address top_p, Address min_p, Address top_k, Address uniform, Address tokens) {
  const DrawArgs args{rows_in(logits, rows, vocabulary, stride, index),
                      at<const double>("draw: temperature", temperature, rows),
                      at<const double>("draw: top_p", top_p, rows),
                      at<const double>("draw: min_p", min_p, rows),
                      at<const int64_t>("draw: top_k", top_k, rows),
                      at<const double>("draw: uniform", uniform, rows),
                      at<int64_t>("draw: tokens", tokens, rows)};
  for (int64_t i = 0; i < rows; ++i) check(args.temperature[i] > 0, "draw: a temperature is not above 0");
  submit(args, draw_range, draw);
}

void bound_candidates(Address logits, int64_t rows, int64_t vocabulary, int64_t stride, Address index,
                      double temperature, double top_p, double min_p, int64_t top_k, int64_t capacity, Address ids,
                      Address chances, Address counts) {
  const LogitRows in = rows_in(logits, rows, vocabulary, stride, index);
  check(temperature > 0, "candidates: the temperature is not above 0");
  check_sizes("candidates", rows, capacity);
  submit(CandidatesArgs{in, {temperature, top_p, min_p, top_k}, capacity,
                        at<int64_t>("candidates: ids", ids, rows * capacity),
                        at<double>("candidates: chances", chances, rows * capacity),
                        at<int64_t>("candidates: counts", counts, rows)},
         candidates_range, candidates);
}

}  // namespace

void bind_sample(nb::module_& m) {
  const nb::call_guard<nb::gil_scoped_release> free;
  m.def("argmax", &bound_argmax, free);
  m.def("log_sum_exp", &bound_log_sum_exp, free);
  m.def("logprobs", &bound_logprobs, free);
  m.def("draw", &bound_draw, free);
  m.def("candidates", &bound_candidates, free);
  m.def("uniform", [](uint64_t seed, uint64_t choice, uint64_t position) { return uniform(seed, choice, position); });
}

}  // namespace r1
