#include "sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "paths.h"

namespace r1 {
namespace {

constexpr int64_t kFew = 1024;  // how many of the likeliest top-p looks at before it looks at all that could be kept
constexpr double kSlack = 1e-9; // a bound on logits is this much lower than it need be, as it is computed with rounding

struct Candidate {
  double chance;
  int64_t id;
};

bool before(const Candidate& a, const Candidate& b) {
  return a.chance != b.chance ? a.chance > b.chance : a.id < b.id;
}
bool by_id(const Candidate& a, const Candidate& b) { return a.id < b.id; }

int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// One row, with what several steps ask of it. Its memory is the thread's, and is used again.
struct Row {
  const float* x;
  int64_t n;
  double temperature = 1, most = 0;
  float largest = 0;
  std::vector<float>& maxima;
  std::vector<Candidate>& kept;

  static Row of(const LogitRows& in, int64_t i) {
    thread_local std::vector<float> maxima;
    thread_local std::vector<Candidate> kept;
    Row row{in.logits + (in.index != nullptr ? in.index[i] : i) * in.stride, in.vocabulary, 1, 0, 0, maxima, kept};
    maxima.resize(static_cast<size_t>(blocks(row.n, kMaxBlock)));
    kept.clear();
    row.largest = kernels().sample.maxima(row.x, row.n, maxima.data());
    row.most = row.largest;
    return row;
  }

  void heat(double by) {
    temperature = by;
    most = static_cast<double>(largest) / by;
  }

  int64_t argmax() const {
    for (int64_t block = 0; block < static_cast<int64_t>(maxima.size()); ++block) {
      if (maxima[block] != largest) continue;
      for (int64_t i = block * kMaxBlock; i < std::min(n, (block + 1) * kMaxBlock); ++i)
        if (x[i] == largest) return i;
    }
    return 0;  // nothing but NaNs
  }

  // Sets `kept` to the tokens whose logit is at least `least`, ascending, with their chances.
  void collect(double least) {
    kept.clear();
    double chances[kMaxBlock];
    for (int64_t block = 0; block < static_cast<int64_t>(maxima.size()); ++block) {
      if (!(maxima[block] >= least)) continue;
      const int64_t start = block * kMaxBlock, count = std::min(kMaxBlock, n - start);
      kernels().sample.chances(x + start, count, temperature, most, chances);
      for (int64_t i = 0; i < count; ++i)
        if (x[start + i] >= least) kept.push_back({chances[i], start + i});
    }
  }

  // Collects at least the `count` largest: as many blocks have a maximum as large as the count-th of the maxima.
  void collect_largest(int64_t count) {
    if (count >= static_cast<int64_t>(maxima.size())) return collect(-std::numeric_limits<double>::infinity());
    thread_local std::vector<float> order;
    order = maxima;
    std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), std::greater<float>());
    // Logits that differ may have the same chance, by rounding.
    const double least = order[count - 1], room = slack(least);
    collect(std::isfinite(room) ? least - room : least);
  }

  double slack(double logit) const {
    return kSlack * (std::abs(logit) + std::abs(static_cast<double>(largest)) + temperature);
  }

  void drop_impossible() {
    const auto end = std::remove_if(kept.begin(), kept.end(), [](const Candidate& c) { return !(c.chance > 0); });
    kept.erase(end, kept.end());
  }
};

// Leaves the candidates before which less than `limit` stands, in the order in which they are. Like a quick search for
// the k-th, by mass instead of number.
void keep_mass(std::vector<Candidate>& list, double limit) {
  thread_local std::vector<Candidate> order;
  order = list;
  size_t low = 0, high = order.size();
  double mass = 0;                        // of order[0, low), which are kept
  Candidate last{2, -1};                  // the last of those kept; no chance is above 1
  while (high - low > 32) {
    const Candidate a = order[low], b = order[low + (high - low) / 2], c = order[high - 1];
    const Candidate pivot = std::max(std::min(a, b, before), std::min(std::max(a, b, before), c, before), before);
    const auto middle = std::partition(order.begin() + low, order.begin() + high,
                                       [&](const Candidate& one) { return before(one, pivot); });
    const size_t split = middle - order.begin();
    double upper = 0;
    for (size_t i = low; i < split; ++i) upper += order[i].chance;
    if (mass + upper >= limit) {
      high = split;
      continue;
    }
    // All before the pivot are kept, and so is the pivot, before which less than the limit stands.
    std::iter_swap(middle, std::find_if(order.begin() + split, order.begin() + high,
                                        [&](const Candidate& one) { return one.id == pivot.id; }));
    mass += upper + pivot.chance;
    last = pivot;
    low = split + 1;
    if (mass >= limit) high = low;
  }
  std::sort(order.begin() + low, order.begin() + high, before);
  for (; low < high && mass < limit; ++low) {
    mass += order[low].chance;
    last = order[low];
  }
  list.erase(std::remove_if(list.begin(), list.end(), [&](const Candidate& c) { return before(last, c); }), list.end());
}

// What the filter leaves of a heated row, in row.kept, ascending. For a filter that leaves all, see `draw_any`.
void filter(Row& row, const Filter& f) {
  const bool top_k = f.top_k > 0 && f.top_k < row.n;
  std::vector<Candidate>& kept = row.kept;
  if (top_k) {
    row.collect_largest(f.top_k);
    if (static_cast<int64_t>(kept.size()) > f.top_k) {
      std::nth_element(kept.begin(), kept.begin() + (f.top_k - 1), kept.end(), before);
      kept.resize(static_cast<size_t>(f.top_k));
    }
    if (f.top_p < 1) {
      std::sort(kept.begin(), kept.end(), before);
      double total = 0, mass = 0;
      for (const Candidate& c : kept) total += c.chance;
      size_t count = 0;
      while (count < kept.size() && mass < f.top_p * total) mass += kept[count++].chance;
      kept.resize(count);
    }
    std::sort(kept.begin(), kept.end(), by_id);
  } else if (f.top_p < 1) {
    thread_local std::vector<double> sums;
    sums.resize(static_cast<size_t>(blocks(row.n, kSumBlock)));
    const double total = kernels().sample.sums(row.x, row.n, row.temperature, row.most, sums.data());
    const double limit = f.top_p * total;
    row.collect_largest(kFew);
    double mass = 0;
    for (const Candidate& c : kept) mass += c.chance;
    if (!(mass >= limit)) {
      // Tokens with less than an n-th of what top-p leaves out can't make it up together.
      const double least = (std::log((1 - f.top_p) * total / row.n) + row.most) * row.temperature;
      row.collect(least - row.slack(least));
    }
    keep_mass(kept, limit);
  } else if (f.min_p > 0) {
    const double least = (std::log(f.min_p) + row.most) * row.temperature;
    row.collect(least - row.slack(least));
  } else {
    row.collect(-std::numeric_limits<double>::infinity());
  }
  if (f.min_p > 0)
    kept.erase(std::remove_if(kept.begin(), kept.end(), [&](const Candidate& c) { return !(c.chance >= f.min_p); }),
               kept.end());
  row.drop_impossible();
}

// A draw from the whole row: the block by the partial sums, then the token within it.
int64_t draw_any(const Row& row, double uniform) {
  thread_local std::vector<double> sums;
  sums.resize(static_cast<size_t>(blocks(row.n, kSumBlock)));
  const double point = uniform * kernels().sample.sums(row.x, row.n, row.temperature, row.most, sums.data());
  double mass = 0;
  size_t block = 0, last = 0;  // last: the last block with any chance up to here
  for (; block < sums.size(); ++block) {
    if (sums[block] > 0) last = block;
    if (mass + sums[block] > point) break;
    mass += sums[block];
  }
  if (block == sums.size()) {
    block = last;
    mass = -std::numeric_limits<double>::infinity();  // rounding has led past the end: the last that has a chance
  }
  const int64_t start = static_cast<int64_t>(block) * kSumBlock, count = std::min(kSumBlock, row.n - start);
  double chances[kSumBlock];
  kernels().sample.chances(row.x + start, count, row.temperature, row.most, chances);
  int64_t chosen = start;
  for (int64_t i = 0; i < count; ++i) {
    if (chances[i] > 0) chosen = start + i;
    mass += chances[i];
    if (mass > point) break;
  }
  return chosen;
}

int64_t draw_one(Row& row, const Filter& f, double uniform) {
  row.heat(f.temperature);
  if (!std::isfinite(row.most)) return row.argmax();
  const bool all = !(f.top_k > 0 && f.top_k < row.n) && f.top_p >= 1 && !(f.min_p > 0);
  if (all) return draw_any(row, uniform);
  filter(row, f);
  if (row.kept.empty()) return row.argmax();  // min_p above 1
  double total = 0, mass = 0;
  for (const Candidate& c : row.kept) total += c.chance;
  for (const Candidate& c : row.kept) {
    mass += c.chance;
    if (mass > uniform * total) return c.id;
  }
  return row.kept.back().id;
}

double log_sum(const Row& row) {
  if (!std::isfinite(row.largest)) return row.largest;
  thread_local std::vector<double> sums;
  sums.resize(static_cast<size_t>(blocks(row.n, kSumBlock)));
  return row.most + std::log(kernels().sample.sums(row.x, row.n, 1, row.most, sums.data()));
}

Range rows_of(const LogitRows& in) { return {in.rows, std::max<int64_t>(1, 8192 / in.vocabulary)}; }

}  // namespace

void argmax(const ArgmaxArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) a.out[i] = Row::of(a.in, i).argmax();
}
Range argmax_range(const ArgmaxArgs& a) { return rows_of(a.in); }

void log_sum_exp(const LogSumExpArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) a.out[i] = log_sum(Row::of(a.in, i));
}
Range log_sum_exp_range(const LogSumExpArgs& a) { return rows_of(a.in); }

void logprobs(const LogprobsArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Row row = Row::of(a.in, i);
    const double sum = log_sum(row);
    a.logprobs[i] = static_cast<double>(row.x[a.tokens[i]]) - sum;
    if (a.count == 0) continue;
    row.collect_largest(a.count);
    std::vector<Candidate>& kept = row.kept;
    for (Candidate& c : kept) c.chance = row.x[c.id];  // the order of logits is that of chances, and finer
    const int64_t found = std::min<int64_t>(a.count, kept.size());
    std::partial_sort(kept.begin(), kept.begin() + found, kept.end(), before);
    for (int64_t j = 0; j < a.count; ++j) {  // NaNs leave places over
      a.top_ids[i * a.count + j] = j < found ? kept[j].id : -1;
      a.top_logprobs[i * a.count + j] = j < found ? kept[j].chance - sum : -std::numeric_limits<double>::infinity();
    }
  }
}
Range logprobs_range(const LogprobsArgs& a) { return rows_of(a.in); }

void draw(const DrawArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Row row = Row::of(a.in, i);
    a.tokens[i] = draw_one(row, {a.temperature[i], a.top_p[i], a.min_p[i], a.top_k[i]}, a.uniform[i]);
  }
}
Range draw_range(const DrawArgs& a) { return {a.in.rows, 1}; }

void candidates(const CandidatesArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    Row row = Row::of(a.in, i);
    row.heat(a.filter.temperature);
    if (std::isfinite(row.most)) filter(row, a.filter);
    a.counts[i] = static_cast<int64_t>(row.kept.size());
    for (int64_t j = 0; j < std::min(a.capacity, a.counts[i]); ++j) {
      a.ids[i * a.capacity + j] = row.kept[j].id;
      a.chances[i * a.capacity + j] = row.kept[j].chance;
    }
  }
}
Range candidates_range(const CandidatesArgs& a) { return {a.in.rows, 1}; }

double uniform(uint64_t seed, uint64_t choice, uint64_t position) {
  uint64_t words[4] = {position + 1, choice + (position == UINT64_MAX ? 1 : 0), 0, 0}, keys[2] = {seed, 0};
  for (int round = 0; round < 10; ++round) {
    const auto first = static_cast<unsigned __int128>(0xD2E7470EE14C6C93) * words[0];
    const auto second = static_cast<unsigned __int128>(0xCA5A826395121157) * words[2];
    words[0] = static_cast<uint64_t>(second >> 64) ^ words[1] ^ keys[0];
    words[2] = static_cast<uint64_t>(first >> 64) ^ words[3] ^ keys[1];
    words[1] = static_cast<uint64_t>(second);
    words[3] = static_cast<uint64_t>(first);
    keys[0] += 0x9E3779B97F4A7C15;
    keys[1] += 0xBB67AE8584CAA73B;
  }
  return static_cast<double>(words[0] >> 11) * 0x1p-53;
}

}  // namespace r1
