#define R1_PATH routing
#include "route.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vector.h"

namespace r1 {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

Range tokens_of(int64_t tokens, int64_t work) { return {tokens, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, work))}; }

// Of `count` values the place of the largest that is not taken, the lowest among equals.
int64_t largest(const float* values, const uint8_t* taken, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
  return best;
}

float judge(const float* values, int64_t count, bool two) {
  float first = kLowest, second = kLowest;
  for (int64_t i = 0; i < count; ++i) {
    const float v = values[i];
    if (v > first) second = first, first = v;
    else if (v > second) second = v;
  }
  return two ? first + second : first;
}

template <class T>
void combine_token(const CombineArgs& a, const T* x, int64_t token) {
  const int64_t* places = a.places + token * a.active;
  const float* weights = a.weights + token * a.active;
  float* out = a.out + token * a.dim;
  for (int64_t slot = 0; slot < a.active; ++slot) {
    const T* row = x + places[slot] * a.x_row;
    const float weight = weights[slot];
    int64_t i = 0;
    for (; i + 16 <= a.dim; i += 16) {
      const routing::f32x16 part = routing::load(row + i) * weight;
      routing::store(out + i, slot == 0 ? part : routing::load(out + i) + part);
    }
    for (; i < a.dim; ++i) {
      const float part = routing::get(row + i) * weight;
      out[i] = slot == 0 ? part : out[i] + part;
    }
  }
}

}  // namespace

Range scores_range(const ScoresArgs& a) { return tokens_of(a.tokens, 8 * a.experts); }

void scores(const ScoresArgs& a, int64_t begin, int64_t end) {
  std::vector<double> powers(static_cast<size_t>(a.experts));
  for (int64_t token = begin; token < end; ++token) {
    const float* x = a.logits + token * a.stride;
    float* out = a.out + token * a.experts;
    if (a.sigmoid) {
      for (int64_t e = 0; e < a.experts; ++e) out[e] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x[e]))));
      continue;
    }
    double most = x[0], total = 0;
    for (int64_t e = 1; e < a.experts; ++e) most = x[e] > most ? x[e] : most;
    for (int64_t e = 0; e < a.experts; ++e) total += powers[static_cast<size_t>(e)] = std::exp(x[e] - most);
    for (int64_t e = 0; e < a.experts; ++e) out[e] = static_cast<float>(powers[static_cast<size_t>(e)] / total);
  }
}

Range route_range(const RouteArgs& a) { return tokens_of(a.tokens, (a.active + 2) * a.experts); }

void route(const RouteArgs& a, int64_t begin, int64_t end) {
  const int64_t width = a.experts / a.groups;
  std::vector<float> choice(static_cast<size_t>(a.experts)), judged(static_cast<size_t>(a.groups));
  std::vector<uint8_t> taken(static_cast<size_t>(a.experts)), kept(static_cast<size_t>(a.groups));
  for (int64_t token = begin; token < end; ++token) {
    const float* scores = a.scores + token * a.stride;
    for (int64_t e = 0; e < a.experts; ++e) {
      const float value = a.bias == nullptr ? scores[e] : scores[e] + a.bias[e];
      choice[static_cast<size_t>(e)] = value == value ? value : kLowest;
    }
    std::fill(taken.begin(), taken.end(), uint8_t{0});
    if (a.groups > 1) {
      std::fill(kept.begin(), kept.end(), uint8_t{0});
      for (int64_t g = 0; g < a.groups; ++g)
        judged[static_cast<size_t>(g)] = judge(choice.data() + g * width, width, a.bias != nullptr);
      for (int64_t i = 0; i < a.active_groups; ++i)
        kept[static_cast<size_t>(largest(judged.data(), kept.data(), a.groups))] = 1;
      for (int64_t e = 0; e < a.experts; ++e) taken[static_cast<size_t>(e)] = !kept[static_cast<size_t>(e / width)];
    }
    int64_t* chosen = a.chosen + token * a.active;
    for (int64_t slot = 0; slot < a.active; ++slot) {
      chosen[slot] = largest(choice.data(), taken.data(), a.experts);
      taken[static_cast<size_t>(chosen[slot])] = 1;
    }
    std::sort(chosen, chosen + a.active);
  }
}

Range route_weights_range(const RouteWeightsArgs& a) { return tokens_of(a.tokens, 8 * a.active); }

void route_weights(const RouteWeightsArgs& a, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const float* scores = a.scores + token * a.stride;
    const int64_t* chosen = a.chosen + token * a.active;
    float* weights = a.weights + token * a.active;
    float total = 0;
    for (int64_t slot = 0; slot < a.active; ++slot) total += scores[chosen[slot]];
    for (int64_t slot = 0; slot < a.active; ++slot) {
      const float score = scores[chosen[slot]];
      weights[slot] = (a.normalise ? score / (total + 1e-20f) : score) * a.scale;
    }
  }
}

Range by_expert_range(const ByExpertArgs&) { return {1, 1}; }

void by_expert(const ByExpertArgs& a, int64_t, int64_t) {
  const int64_t choices = a.tokens * a.active;
  std::vector<int64_t> next(static_cast<size_t>(a.experts));
  for (int64_t i = 0; i < choices; ++i) ++next[static_cast<size_t>(a.chosen[i])];
  int64_t start = 0;
  for (int64_t e = 0; e < a.experts; ++e) {
    const int64_t count = next[static_cast<size_t>(e)];
    a.totals[e] += count;
    next[static_cast<size_t>(e)] = start;
    start += count;
    a.ends[e] = static_cast<int32_t>(start);
  }
  for (int64_t token = 0; token < a.tokens; ++token)
    for (int64_t i = token * a.active; i < (token + 1) * a.active; ++i) {
      const int64_t row = next[static_cast<size_t>(a.chosen[i])]++;
      a.sources[row] = token;
      a.places[i] = row;
    }
}

Range combine_range(const CombineArgs& a) { return tokens_of(a.tokens, a.active * a.dim / 2); }

void combine(const CombineArgs& a, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    if (a.x_bf16) combine_token(a, static_cast<const uint16_t*>(a.x), token);
    else combine_token(a, static_cast<const float*>(a.x), token);
  }
}

}  // namespace r1
