// The kernels of attention.h, compiled once per path. Rows here are pairs (query, head) that share a key head.
#pragma once

#include "attention.h"
#include "rows_impl.h"

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

// Memory of one item, in floats from `thread_scratch`.
struct Workspace {
  float* keys;     // (key_dim, 64): transposed
  float* values;   // (64, padded value_dim)
  float* queries;  // (rows, key_dim)
  float* sums;     // (rows, record): what is merged so far
  float* record;   // (4, record): of one tile
  float* weights;  // (4, 64)
  float* zeros;    // in place of a key that nobody sees
  bool direct;     // few rows: values are read from the pool itself, as bringing them into place would cost more
};

inline Workspace workspace(const AttentionArgs& a, int64_t rows, int64_t head_rows) {
  const int64_t keys = a.layout.key_dim * kTile, values = kTile * padded_16(a.layout.value_dim);
  const int64_t queries = padded_16(rows * a.layout.key_dim), record = record_floats(a.layout.value_dim);
  const int64_t zeros = padded_16(a.layout.key_dim);
  float* p = thread_scratch(keys + values + queries + (rows + 4) * record + 4 * kTile + zeros);
  Workspace w{};
  w.keys = p;
  w.values = w.keys + keys;
  w.queries = w.values + values;
  w.sums = w.queries + queries;
  w.record = w.sums + rows * record;
  w.weights = w.record + 4 * record;
  w.zeros = w.weights + 4 * kTile;
#if defined(__AVX512F__)
  w.direct = head_rows <= 8 && a.layout.value_dim % 16 == 0;
#else
  w.direct = false && head_rows;
#endif
  std::memset(w.zeros, 0, static_cast<size_t>(zeros) * 4);
  return w;
}

struct Stored {
  const uint8_t* data;
  float scale;  // of int8 codes
};

template <Storage S>
R1_INLINE f32x16 load_stored(const Stored& s, int64_t i, int64_t n) {
#if defined(__AVX512F__)
  if (S == Storage::bf16 && n >= 16) {
    const __m256i* p = reinterpret_cast<const __m256i*>(s.data + 2 * i);
    return reinterpret_cast<f32x16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
  }
#endif
  if constexpr (S == Storage::fp32) return load_some(reinterpret_cast<const float*>(s.data) + i, n);
  else if constexpr (S == Storage::bf16) return load_some(reinterpret_cast<const uint16_t*>(s.data) + i, n);
  else return load_some(reinterpret_cast<const int8_t*>(s.data) + i, n) * s.scale;
}

#if defined(__AVX512F__)
// 16 rows of 16 -> 16 columns of 16.
R1_INLINE void transpose(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d x = _mm512_castps_pd(t[i + j]), y = _mm512_castps_pd(t[i + 2 + j]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  // Now r[4 b + c] holds, in its quarter q, column 4 q + c of rows 4 b … 4 b + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), low_odd = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xDD);
    const __m512 high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    const __m512 high_odd = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xDD);
    t[c] = _mm512_shuffle_f32x4(low, high, 0x88);
    t[8 + c] = _mm512_shuffle_f32x4(low, high, 0xDD);
    t[4 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    t[12 + c] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xDD);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}
#endif

// Columns of 16 keys -> to[column * 64 + key].
template <Storage S>
R1_INLINE void store_transposed(const Stored* keys, int64_t dim, float* to) {
  int64_t i = 0;
#if defined(__AVX512F__)
  __m512 r[16];
  if constexpr (S == Storage::bf16) {
    for (; i + 32 <= dim; i += 32) {  // pairs of columns travel together
      for (int k = 0; k < 16; ++k) r[k] = _mm512_loadu_ps(keys[k].data + 2 * i);
      transpose(r);
      for (int c = 0; c < 16; ++c) {
        const __m512i pair = _mm512_castps_si512(r[c]);
        _mm512_store_si512(to + (i + 2 * c) * kTile, _mm512_slli_epi32(pair, 16));
        _mm512_store_si512(to + (i + 2 * c + 1) * kTile, _mm512_and_si512(pair, _mm512_set1_epi32(-65536)));
      }
    }
  }
  for (; i + 16 <= dim; i += 16) {
    for (int k = 0; k < 16; ++k) r[k] = reinterpret_cast<__m512>(load_stored<S>(keys[k], i, 16));
    transpose(r);
    for (int c = 0; c < 16; ++c) _mm512_store_ps(to + (i + c) * kTile, r[c]);
  }
#endif
  for (; i < dim; i += 16) {
    const int64_t n = dim - i < 16 ? dim - i : 16;
    float flat[16][16];
    for (int k = 0; k < 16; ++k) store(flat[k], load_stored<S>(keys[k], i, n));
    for (int64_t c = 0; c < n; ++c)
      for (int k = 0; k < 16; ++k) to[(i + c) * kTile + k] = flat[k][c];
  }
}

// Where the rows of a tile stand: those of keys [low, high), null for the others.
struct TileRows {
  const uint8_t* at[kTile];
};
inline void find_rows(const AttentionArgs& a, const AttentionItem& item, int64_t tile, int64_t low, int64_t high,
                      TileRows& rows) {
  int64_t place = (tile * kTile + low) / a.block_size, offset = (tile * kTile + low) % a.block_size;
  for (int64_t j = 0; j < kTile; ++j) {
    rows.at[j] = nullptr;
    if (j < low || j >= high) continue;
    rows.at[j] = a.pool + (item.table[place] * a.block_size + offset) * a.layout.bytes;
    if (++offset == a.block_size) offset = 0, ++place;
  }
}

// What of the next tile's rows is asked for while a tile is worked on: a line now and then, as many at once would stall.
struct Ahead {
  const uint8_t* const* rows;  // null: nothing
  int64_t keys, key_bytes, values, value_bytes;
};
R1_INLINE void fetch(const uint8_t* row, int64_t begin, int64_t bytes) {
  if (row == nullptr) return;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + begin + i, 0, 2);
}

// A head's keys and values of a tile into place, as fp32: keys transposed, values as rows. A key that is null is zero,
// its value is not set.
template <Storage S>
void load_tile(const AttentionArgs& a, int64_t head, const TileRows& rows, const Workspace& w, Stored* values) {
  const RowLayout& l = a.layout;
  const int64_t padded = padded_16(l.value_dim);
  const auto step_of = [&](const uint8_t* row, int64_t number) R1_ALWAYS {
    float scale;
    std::memcpy(&scale, row + l.scales + 4 * number, 4);
    return scale;
  };
  Stored keys[kTile];
  for (int64_t j = 0; j < kTile; ++j) {
    const uint8_t* row = rows.at[j];
    const bool there = row != nullptr;
    const uint8_t* key = there ? row + head * l.key_dim * l.element : reinterpret_cast<const uint8_t*>(w.zeros);
    const uint8_t* value = l.shared || !there ? key : row + l.values + head * l.value_dim * l.element;
    keys[j].data = key;
    values[j].data = value;
    if constexpr (S == Storage::int8) {
      keys[j].scale = there ? step_of(row, head) : 0.0f;
      values[j].scale = l.shared || !there ? keys[j].scale : step_of(row, l.heads + head);
    }
    if (!there) continue;
    if (w.direct) continue;
    float* to = w.values + j * padded;
    each_16(l.value_dim, [&](int64_t i, int64_t n) R1_ALWAYS { store(to + i, load_stored<S>(values[j], i, n)); });
  }
  for (int64_t j = 0; j < kTile; j += 16) store_transposed<S>(keys + j, l.key_dim, w.keys + j);
}

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

// Merges a tile's record into the sums; with `first`, it is the first.
inline void merge_record(const float* record, float* sums, int64_t padded, bool first) {
  if (first) {
    std::memcpy(sums, record, static_cast<size_t>(padded + 2) * 4);
    return;
  }
  const float before = sums[padded], now = record[padded];
  const float most = now > before ? now : before;
  float factors[16] = {before - most, now - most};
  store(factors, exp(load(factors)));
  for (int64_t i = 0; i < padded; i += 16)
    store(sums + i, fma(load(record + i), splat(factors[1]), load(sums + i) * factors[0]));
  sums[padded] = most;
  sums[padded + 1] = sums[padded + 1] * factors[0] + record[padded + 1] * factors[1];
}

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
        merge_record(from, sums + (r + i) * record, padded, tile == (begin > 0 ? begin / kTile : 0));
      }
    }
  }
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
  // What any of the item's queries sees: from the first one's first key to the last one's last.
  const auto find = [&](int64_t tile, TileRows& places) R1_ALWAYS {
    find_rows(a, item, tile, seen(a, item.position, tile).low, seen(a, item.position + item.rows - 1, tile).high, places);
  };
  TileRows places, next;
  find(item.tile, next);
  for (int64_t tile = item.tile; tile < item.tiles_end; ++tile) {
    places = next;
    if (tile + 1 < item.tiles_end) find(tile + 1, next);
    else next = {};
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

inline void merge(const AttentionArgs& a, int64_t begin, int64_t end) {
  const AttentionPlan plan(a);
  const int64_t padded = padded_16(a.layout.value_dim), record = record_floats(a.layout.value_dim);
  float* sums = thread_scratch(record);
  for (int64_t i = begin; i < end; ++i) {
    const AttentionItem item = plan.merge_of(i);
    for (int64_t head = 0; head < a.heads; ++head) {
      const float* records = item.partials + head * item.stride * record;
      for (int64_t tile = item.tile; tile < item.tiles_end; ++tile)
        merge_record(records + (tile - item.first_tile) * record, sums, padded, tile == item.tile);
      write_out(a, item.row, head, sums);
    }
  }
}

inline AttentionKernels attention_kernels() { return {attend, merge}; }

}  // namespace R1_PATH
}  // namespace r1
