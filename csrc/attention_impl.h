// The kernels of attention.h, compiled once per path. Rows here are pairs (query, head) that share a key head.
#pragma once

#include "attention_tile.h"

namespace r1 {
namespace R1_PATH {

// The two inner loops name the register's own width: there are so many sums that they have to stay in registers.
#if defined(__AVX512F__)
typedef f32x16 lanes;
R1_INLINE lanes fma_lanes(lanes a, lanes b, lanes c) { return fma(a, b, c); }
constexpr int kColumns = 4;  // registers of a row's sums
#elif defined(__FMA__) && defined(__AVX__)
typedef f32x8 lanes;
R1_INLINE lanes fma_lanes(lanes a, lanes b, lanes c) {
  return reinterpret_cast<lanes>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
}
constexpr int kColumns = 2;
#else
typedef float lanes __attribute__((vector_size(16)));
R1_INLINE lanes fma_lanes(lanes a, lanes b, lanes c) { return a * b + c; }
constexpr int kColumns = 2;
#endif
constexpr int64_t kLanes = sizeof(lanes) / 4;

R1_INLINE lanes load_lanes(const float* p) { lanes v; std::memcpy(&v, p, sizeof v); return v; }
R1_INLINE void store_lanes(float* p, lanes v) { std::memcpy(p, &v, sizeof v); }
R1_INLINE lanes splat_lanes(float x) { return x - lanes{}; }

constexpr float kLowest = -3.40282347e38f;  // the least m: a tile of scores -infinity has weights 0, not NaN

// Scores of R rows with all keys of the tile, unscaled.
template <int R>
void score(const float* queries, int64_t dim, const float* keys, float* scores, const Ahead& ahead) {
  for (int64_t first = 0; first < kTile; first += kColumns * kLanes) {
    lanes sums[R][kColumns] = {};
    for (int64_t i = 0; i < dim; ++i) {
      if (ahead.rows != nullptr && i < kTile && first == 0) fetch(ahead.rows[i], ahead.keys, ahead.key_bytes);
      lanes k[kColumns];
      for (int j = 0; j < kColumns; ++j) k[j] = load_lanes(keys + i * kTile + first + kLanes * j);
      for (int r = 0; r < R; ++r) {
        const lanes q = splat_lanes(queries[r * dim + i]);
        for (int j = 0; j < kColumns; ++j) sums[r][j] = fma_lanes(q, k[j], sums[r][j]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kColumns; ++j) store_lanes(scores + r * kTile + first + kLanes * j, sums[r][j]);
  }
}

// A row's scores -> weights in place; `record` gets m and l. Keys outside [low, high) weigh 0.
inline void weigh(float* scores, float scale, int64_t low, int64_t high, float* m, float* l) {
  constexpr i32x16 kNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const f32x16 none = splat(-std::numeric_limits<float>::infinity());
  f32x16 s[4];
  i32x16 seen[4];  // 4 times 16 lanes are a tile
  f32x16 most = splat(kLowest);
  for (int j = 0; j < 4; ++j) {
    const i32x16 key = kNumbers + 16 * j;
    seen[j] = (key >= static_cast<int32_t>(low)) & (key < static_cast<int32_t>(high));
    s[j] = load(scores + 16 * j) * scale;
    s[j] = seen[j] ? s[j] : none;
    most = max(s[j], most);
  }
  *m = most_of(most);
  for (int j = 0; j < 4; ++j) {
    s[j] = seen[j] ? exp(s[j] - *m) : f32x16{};
    store(scores + 16 * j, s[j]);
  }
  *l = add_lanes((s[0] + s[1]) + (s[2] + s[3]));
}

#if defined(__AVX512F__)
// As `gather`, with the values where they are stored.
template <Storage S, int R, int C>
void gather_stored(const float* weights, const Stored* values, int64_t i, int64_t low, int64_t high, float* sums,
                   int64_t record, const Ahead& ahead) {
  f32x16 sum[R][C] = {};
  for (int64_t j = low; j < high; ++j) {
    if (ahead.rows != nullptr && i == 0) fetch(ahead.rows[j], ahead.values, ahead.value_bytes);
    f32x16 v[C];
    for (int c = 0; c < C; ++c) v[c] = load_stored<S>(values[j], i + 16 * c, 16);
    for (int r = 0; r < R; ++r) {
      const f32x16 weight = splat(weights[r * kTile + j]);
      for (int c = 0; c < C; ++c) sum[r][c] = fma(weight, v[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(sums + r * record + i + 16 * c, sum[r][c]);
}

template <Storage S, int R>
void gather_all_stored(const float* weights, const Stored* values, int64_t dim, int64_t low, int64_t high, float* sums,
                       int64_t record, const Ahead& ahead) {
  int64_t i = 0;
  for (; i + 64 <= dim; i += 64) gather_stored<S, R, 4>(weights, values, i, low, high, sums, record, ahead);
  for (; i < dim; i += 16) gather_stored<S, R, 1>(weights, values, i, low, high, sums, record, ahead);
}
#endif

// sums (R, C registers of columns) = values of keys [low, high), weighted, one key after the other.
template <int R, int C>
void gather(const float* weights, const float* values, int64_t padded, int64_t low, int64_t high, float* sums,
            int64_t record) {
  lanes sum[R][C] = {};
  for (int64_t j = low; j < high; ++j) {
    lanes v[C];
    for (int c = 0; c < C; ++c) v[c] = load_lanes(values + j * padded + kLanes * c);
    for (int r = 0; r < R; ++r) {
      const lanes weight = splat_lanes(weights[r * kTile + j]);
      for (int c = 0; c < C; ++c) sum[r][c] = fma_lanes(weight, v[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store_lanes(sums + r * record + kLanes * c, sum[r][c]);
}

template <int R>
void gather_all(const float* weights, const float* values, int64_t padded, int64_t low, int64_t high, float* sums,
                int64_t record) {
  constexpr int64_t kStep = kColumns * kLanes;  // 64 columns, or fewer that make up 16
  int64_t i = 0;
  for (; i + kStep <= padded; i += kStep) gather<R, kColumns>(weights, values + i, padded, low, high, sums + i, record);
  if (padded - i == 48) gather<R, 3>(weights, values + i, padded, low, high, sums + i, record);
  if (padded - i == 32) gather<R, 2>(weights, values + i, padded, low, high, sums + i, record);
  if (padded - i == 16) gather<R, 1>(weights, values + i, padded, low, high, sums + i, record);
}

// Merges a tile's record into the sums; with `first`, it is the first. `power` is the path's e^x.
template <class F>
R1_INLINE void merge_record(const float* record, float* sums, int64_t padded, bool first, F power) {
  if (first) {
    std::memcpy(sums, record, static_cast<size_t>(padded + 2) * 4);
    return;
  }
  const float before = sums[padded], now = record[padded];
  const float most = now > before ? now : before;
  float factors[16] = {before - most, now - most};
  store(factors, power(load(factors)));
  for (int64_t i = 0; i < padded; i += 16)
    store(sums + i, fma(load(record + i), splat(factors[1]), load(sums + i) * factors[0]));
  sums[padded] = most;
  sums[padded + 1] = sums[padded + 1] * factors[0] + record[padded + 1] * factors[1];
}
constexpr auto kPower = [](f32x16 x) R1_ALWAYS { return exp(x); };

inline void write_out(const AttentionArgs& a, int64_t row, int64_t head, const float* sums) {
  const int64_t dim = a.layout.value_dim;
  const float total = sums[padded_16(dim) + 1];
  typed(a.out, a.out_bf16, [&](auto out) R1_ALWAYS {
    auto to = out + (row * a.heads + head) * dim;
    each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS { store_some(to + i, load(sums + i) / total, n); });
  });
}

// The keys [low, high) of a tile that the query at `position` sees.
struct Seen {
  int64_t low, high;
};
R1_INLINE Seen seen(const AttentionArgs& a, int64_t position, int64_t tile) {
  const int64_t start = tile * kTile, from = a.window > 0 ? position - a.window + 1 : 0;
  const int64_t high = position + 1 - start;
  return {from > start ? from - start : 0, high < kTile ? high : kTile};
}

// One tile for rows [first, first + R) of the item: their records into w.record.
template <Storage S, int R>
void attend_rows(const AttentionArgs& a, const Workspace& w, [[maybe_unused]] const Stored* values, const Seen* rows,
                 int64_t first, const Ahead& ahead) {
  const int64_t padded = padded_16(a.layout.value_dim), record = record_floats(a.layout.value_dim);
  score<R>(w.queries + first * a.layout.key_dim, a.layout.key_dim, w.keys, w.weights, ahead);
  bool alike = true;
  for (int r = 0; r < R; ++r) {
    float* ends = w.record + r * record + padded;
    weigh(w.weights + r * kTile, a.scale, rows[r].low, rows[r].high, ends, ends + 1);
    alike = alike && rows[r].low == rows[0].low && rows[r].high == rows[0].high;
  }
  const int together = alike ? 1 : R;  // one pass over the values, or one for each row
  for (int r = 0; r < together; ++r) {
    const float* weights = w.weights + r * kTile;
    float* sums = w.record + r * record;
#if defined(__AVX512F__)
    if (w.direct) {
      if (alike) gather_all_stored<S, R>(weights, values, padded, rows[r].low, rows[r].high, sums, record, ahead);
      else gather_all_stored<S, 1>(weights, values, padded, rows[r].low, rows[r].high, sums, record, ahead);
      continue;
    }
#endif
    if (alike) gather_all<R>(weights, w.values, padded, rows[r].low, rows[r].high, sums, record);
    else gather_all<1>(weights, w.values, padded, rows[r].low, rows[r].high, sums, record);
  }
}

// One tile for the rows of one key head: merged into `sums`, or stored for others to merge.
template <Storage S>
void attend_head(const AttentionArgs& a, const AttentionItem& item, int64_t head, int64_t tile, const TileRows& places,
                 const TileRows& next, const Workspace& w, float* sums) {
  const int64_t group = a.heads / a.layout.heads, rows = item.rows * group;
  const int64_t padded = padded_16(a.layout.value_dim), record = record_floats(a.layout.value_dim);
  const int64_t first = (head - item.head) * rows;
  Stored values[kTile];
  load_tile<S>(a, head, places, w, values);
  const RowLayout& l = a.layout;
  Ahead ahead{next.at, head * l.key_dim * l.element, l.key_dim * l.element, l.values + head * l.value_dim * l.element,
              l.shared ? 0 : l.value_dim * l.element};
  if (!w.direct) ahead = {};
  for (int64_t r = 0; r < rows; r += 4) {
    const int64_t many = rows - r < 4 ? rows - r : 4;
    Seen range[4];
    for (int64_t i = 0; i < many; ++i) range[i] = seen(a, item.position + (r + i) / group, tile);
    if (many == 4) attend_rows<S, 4>(a, w, values, range, first + r, r == 0 ? ahead : Ahead{});
    else if (many == 3) attend_rows<S, 3>(a, w, values, range, first + r, r == 0 ? ahead : Ahead{});
    else if (many == 2) attend_rows<S, 2>(a, w, values, range, first + r, r == 0 ? ahead : Ahead{});
    else attend_rows<S, 1>(a, w, values, range, first + r, r == 0 ? ahead : Ahead{});
    for (int64_t i = 0; i < many; ++i) {
      if (range[i].low >= range[i].high) continue;
      const int64_t token = (r + i) / group;
      const float* from = w.record + i * record;
      if (item.partials != nullptr) {
        const int64_t query = token * a.heads + head * group + (r + i) % group;
        std::memcpy(item.partials + (query * item.stride + tile - item.first_tile) * record, from,
                    static_cast<size_t>(padded + 2) * 4);
      } else {
        const int64_t begin = a.window > 0 ? item.position + token - a.window + 1 : 0;
        merge_record(from, sums + (r + i) * record, padded, tile == (begin > 0 ? begin / kTile : 0), kPower);
      }
    }
  }
}

// The rows of a tile that any of the item's queries sees, from the first one's first key to the last one's last; none
// behind the item's last tile.
inline void find_places(const AttentionArgs& a, const AttentionItem& item, int64_t tile, TileRows& places) {
  places = {};
  if (tile >= item.tiles_end) return;
  const int64_t last = item.position + item.rows - 1;
  find_rows(a, item, tile, seen(a, item.position, tile).low, seen(a, last, tile).high, places);
}

template <Storage S>
void attend_item(const AttentionArgs& a, const AttentionItem& item) {
  const int64_t group = a.heads / a.layout.heads, rows = item.rows * group, dim = a.layout.key_dim;
  const int64_t record = record_floats(a.layout.value_dim);
  const Workspace w = workspace(a, rows * item.heads, rows);
  const auto of_head = [&](int64_t h, int64_t r) R1_ALWAYS { return (item.head + h) * group + r % group; };
  typed(a.q, a.q_bf16, [&](auto q) R1_ALWAYS {
    for (int64_t h = 0; h < item.heads; ++h)
      for (int64_t r = 0; r < rows; ++r)
        copy_row(q + (item.row + r / group) * a.q_token + of_head(h, r) * a.q_head, w.queries + (h * rows + r) * dim,
                 1.0f, dim);
  });
  TileRows places, next;
  find_places(a, item, item.tile, next);
  for (int64_t tile = item.tile; tile < item.tiles_end; ++tile) {
    places = next;
    find_places(a, item, tile + 1, next);
    for (int64_t h = 0; h < item.heads; ++h)
      attend_head<S>(a, item, item.head + h, tile, places, next, w, w.sums + h * rows * record);
  }
  if (item.partials != nullptr) return;
  for (int64_t h = 0; h < item.heads; ++h)
    for (int64_t r = 0; r < rows; ++r)
      write_out(a, item.row + r / group, of_head(h, r), w.sums + (h * rows + r) * record);
}

inline void attend(const AttentionArgs& a, int64_t begin, int64_t end) {
  AttentionPlan plan(a);
  plan.seek(begin);
  for (int64_t i = begin; i < end; ++i) {
    const AttentionItem item = plan.next();
    if (a.layout.storage == Storage::fp32) attend_item<Storage::fp32>(a, item);
    else if (a.layout.storage == Storage::bf16) attend_item<Storage::bf16>(a, item);
    else attend_item<Storage::int8>(a, item);
  }
}

template <class F>
void merge_with(const AttentionArgs& a, int64_t begin, int64_t end, F power) {
  const AttentionPlan plan(a);
  const int64_t padded = padded_16(a.layout.value_dim), record = record_floats(a.layout.value_dim);
  float* sums = thread_scratch(record);
  for (int64_t i = begin; i < end; ++i) {
    const AttentionItem item = plan.merge_of(i);
    for (int64_t head = 0; head < a.heads; ++head) {
      const float* records = item.partials + head * item.stride * record;
      for (int64_t tile = item.tile; tile < item.tiles_end; ++tile)
        merge_record(records + (tile - item.first_tile) * record, sums, padded, tile == item.tile, power);
      write_out(a, item.row, head, sums);
    }
  }
}

inline void merge(const AttentionArgs& a, int64_t begin, int64_t end) { merge_with(a, begin, end, kPower); }

inline AttentionKernels attention_kernels() { return {attend, merge}; }

}  // namespace R1_PATH
}  // namespace r1
