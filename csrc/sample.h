// From logits to tokens: the largest, sums of exponentials, and draws from what top-k, top-p and min-p leave.
//
// Nothing is sorted but what is kept. A token's chance is e^(x / temperature - most), in double, where `most` is the
// row's largest x / temperature; likelier tokens come first, among equals the lower id. NaN logits are passed over:
// they are never chosen and add nothing to a sum. Sums run in an order that depends on the vocabulary's size alone.
#pragma once

#include <cstdint>

#include "pool.h"

namespace r1 {

struct LogitRows {
  const float* logits;
  int64_t rows, vocabulary, stride;
  const int64_t* index;     // which rows of `logits`; null: the first `rows`
};

// out (rows): the first of the largest logits; 0 where there are NaNs only.
struct ArgmaxArgs {
  LogitRows in;
  int64_t* out;
};
void argmax(const ArgmaxArgs&, int64_t begin, int64_t end);
Range argmax_range(const ArgmaxArgs&);

// out (rows): log of the sum of exponentials.
struct LogSumExpArgs {
  LogitRows in;
  double* out;
};
void log_sum_exp(const LogSumExpArgs&, int64_t begin, int64_t end);
Range log_sum_exp_range(const LogSumExpArgs&);

// The log-probability of `tokens` (rows), and ids and log-probabilities (rows, count) of the likeliest ones.
struct LogprobsArgs {
  LogitRows in;
  const int64_t* tokens;
  double* logprobs;
  int64_t count;            // 0 to vocabulary
  int64_t* top_ids;
  double* top_logprobs;
};
void logprobs(const LogprobsArgs&, int64_t begin, int64_t end);
Range logprobs_range(const LogprobsArgs&);

// How one row is filtered: 0 < top_k < vocabulary keeps the likeliest top_k, then top_p < 1 those before which less
// than top_p of what is left stands, then min_p those with at least that chance (the likeliest has 1).
struct Filter {
  double temperature, top_p, min_p;
  int64_t top_k;
};

// tokens (rows): the first whose running sum of chances, over ids in ascending order, exceeds uniform * total. A row
// without a finite largest x / temperature gives its argmax.
struct DrawArgs {
  LogitRows in;
  const double* temperature;
  const double* top_p;
  const double* min_p;
  const int64_t* top_k;
  const double* uniform;    // in [0, 1)
  int64_t* tokens;
};
void draw(const DrawArgs&, int64_t begin, int64_t end);
Range draw_range(const DrawArgs&);

// What the filter leaves of each row, ascending by id: ids and chances (rows, capacity), counts (rows). A count above
// the capacity says how much is missing.
struct CandidatesArgs {
  LogitRows in;
  Filter filter;
  int64_t capacity;
  int64_t* ids;
  double* chances;
  int64_t* counts;
};
void candidates(const CandidatesArgs&, int64_t begin, int64_t end);
Range candidates_range(const CandidatesArgs&);

// The random number of a token: Philox-4x64-10 (Salmon et al. 2011) keyed by the seed, as a fraction of 2^53.
double uniform(uint64_t seed, uint64_t choice, uint64_t position);

// The passes over a whole row, per path.
constexpr int64_t kMaxBlock = 32;   // logits per maximum
constexpr int64_t kSumBlock = 256;  // logits per partial sum

struct SampleKernels {
  // maxima (ceil(n / 32)) of each block, NaNs passed over (-infinity where there is nothing else); returns the largest.
  float (*maxima)(const float* x, int64_t n, float* maxima);
  // sums (ceil(n / 256)) of the blocks' chances; returns their sum, blocks ascending.
  double (*sums)(const float* x, int64_t n, double temperature, double most, double* sums);
  // The chances of n logits; 0 for NaNs. The same values as in `sums`.
  void (*chances)(const float* x, int64_t n, double temperature, double most, double* chances);
};

}  // namespace r1
