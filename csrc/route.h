// Which experts a token goes to, where its rows stand, and the sum of what comes back. Plain C++, the same on every path.
//
// Everything runs per token and in one order: experts ascending, or slots ascending (a token's experts by their ids).
#pragma once

#include <cstdint>

#include "pool.h"

namespace r1 {

// out (tokens, experts) = sigmoid or softmax of each row of logits, in double inside, rounded once.
struct ScoresArgs {
  const float* logits;
  int64_t tokens, experts, stride;
  bool sigmoid;
  float* out;
};
Range scores_range(const ScoresArgs&);
void scores(const ScoresArgs&, int64_t begin, int64_t end);

// chosen (tokens, active): ids of the largest scores + bias, ascending. With groups > 1 from the best `active_groups`
// groups only: a group is judged by its best expert, or with a bias by the sum of its best two. Among equals the lower
// id (of the group too) is chosen; a NaN loses to any number.
struct RouteArgs {
  const float* scores;   // (tokens, experts), rows `stride` apart
  int64_t tokens, experts, stride;
  const float* bias;     // (experts); null for none
  int64_t active, groups, active_groups;
  int64_t* chosen;
};
Range route_range(const RouteArgs&);
void route(const RouteArgs&, int64_t begin, int64_t end);

// weights (tokens, active): the chosen scores, divided by (their sum + 1e-20) if `normalise`, times `scale`.
struct RouteWeightsArgs {
  const float* scores;
  int64_t tokens, experts, stride;
  const int64_t* chosen;
  int64_t active;
  bool normalise;
  float scale;
  float* weights;
};
Range route_weights_range(const RouteWeightsArgs&);
void route_weights(const RouteWeightsArgs&, int64_t begin, int64_t end);

// The order of the (tokens, active) choices by expert, tokens ascending within one: the token of each row, the row of
// each choice, and where each expert's rows end. totals[e] grows by expert e's rows.
struct ByExpertArgs {
  const int64_t* chosen;
  int64_t tokens, active, experts;
  int64_t* sources;      // (tokens * active): of each row its token
  int64_t* places;       // (tokens, active): of each choice its row
  int32_t* ends;         // (experts)
  int64_t* totals;       // (experts)
};
Range by_expert_range(const ByExpertArgs&);
void by_expert(const ByExpertArgs&, int64_t begin, int64_t end);

// out (tokens, dim) = sum over slots, ascending, of weights[t, s] * x[places[t, s]]: each product rounded, then added.
struct CombineArgs {
  const void* x;
  bool x_bf16;
  int64_t dim, x_row;
  const int64_t* places;
  const float* weights;
  int64_t tokens, active;
  float* out;
};
Range combine_range(const CombineArgs&);
void combine(const CombineArgs&, int64_t begin, int64_t end);

}  // namespace r1
