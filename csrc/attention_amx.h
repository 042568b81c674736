// Attention over bf16 keys and values with matrix tiles. The scores of 16 keys and 16 rows (a row is a query and a head of
// the key head's group) are one tile, keys down, rows across: a key is read where it is stored, and the softmax of 16 rows
// is one of lanes. Queries and weights are rounded to bf16. Everything else is as attention.h has it: tiles of 64 keys at
// fixed positions, merged in ascending order; a lane's numbers depend on that lane alone.
#pragma once

#include "amx.h"
#include "attention_impl.h"

namespace r1 {
namespace R1_PATH {

constexpr int64_t kLaneRows = 16;
constexpr int64_t kBytes = 1024;  // of a tile

// Memory of one item, from `thread_scratch`.
struct Tiled {
  uint8_t* queries;  // (16 rows each, steps of 32 columns): pairs of columns down, rows across
  uint8_t* values;   // (2 steps of 32 keys, columns / 16): pairs of keys down, columns across
  float* scores;     // (64 keys, 16 rows)
  uint8_t* weights;  // (2 steps of 32 keys): rows down
  float* product;    // (columns / 16, 16 rows, 16 columns): a key tile's weighted values
  uint8_t* keys;     // copies of keys that can't be read in place: (4 times 16, steps)
  float* sums;       // (rows, record): what is merged so far
  int32_t* position; // (rows of one head): of each row's query, from the item's first
  float* most;       // (rows): M and L of what is merged so far
  float* total;
  int64_t steps, columns;  // of 32 key columns; of 16 value columns
};

inline Tiled tiled_workspace(const AttentionArgs& a, int64_t rows) {
  Tiled w{};
  w.steps = (a.layout.key_dim + 31) / 32;
  w.columns = padded_16(a.layout.value_dim) / 16;
  const int64_t lanes = (rows + kLaneRows - 1) / kLaneRows, tile = kBytes / 4;
  float* p = thread_scratch(tile * (lanes * w.steps + 2 * w.columns + 4 + 2 + w.columns + 4 * w.steps) +
                            lanes * kLaneRows * (record_floats(a.layout.value_dim) + 3));
  const auto take = [&](int64_t floats) { float* at = p; p += floats; return at; };
  w.queries = reinterpret_cast<uint8_t*>(take(lanes * w.steps * tile));
  w.values = reinterpret_cast<uint8_t*>(take(2 * w.columns * tile));
  w.scores = take(4 * tile);
  w.weights = reinterpret_cast<uint8_t*>(take(2 * tile));
  w.product = take(w.columns * tile);
  w.keys = reinterpret_cast<uint8_t*>(take(4 * w.steps * tile));
  w.position = reinterpret_cast<int32_t*>(take(lanes * kLaneRows));
  w.most = take(lanes * kLaneRows);
  w.total = take(lanes * kLaneRows);
  w.sums = take(lanes * kLaneRows * record_floats(a.layout.value_dim));
  return w;
}

// 32 columns of a row as bf16, zeros behind `n` of them.
R1_INLINE __m512i pair_row(const uint16_t* x, int64_t n) {
  if (n >= 32) return _mm512_loadu_si512(x);
  return _mm512_maskz_loadu_epi16((1u << n) - 1, x);
}
R1_INLINE __m512i pair_row(const float* x, int64_t n) {
  alignas(64) uint16_t bits[32] = {};
  for (int64_t i = 0; i < n && i < 32; i += 16) store(bits + i, load_some(x + i, std::min<int64_t>(16, n - i)));
  return _mm512_load_si512(bits);
}

R1_INLINE void transpose_pairs(__m512i (&r)[16]) {
  __m512 f[16];
  for (int i = 0; i < 16; ++i) f[i] = _mm512_castsi512_ps(r[i]);
  transpose(f);
  for (int i = 0; i < 16; ++i) r[i] = _mm512_castps_si512(f[i]);
}

// Two keys' values -> pairs of keys. Returns how large the largest exponents are, for what is not finite.
R1_INLINE __m512i zip_values(const uint8_t* first, const uint8_t* second, int64_t at, int64_t n, uint8_t* to) {
  const __mmask16 mask = n >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << n) - 1);
  const auto row = [&](const uint8_t* p) R1_ALWAYS {
    return p == nullptr ? _mm512_setzero_si512()
                        : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, reinterpret_cast<const uint16_t*>(p) + at));
  };
  const __m512i pairs = _mm512_or_si512(row(first), _mm512_slli_epi32(row(second), 16));
  _mm512_store_si512(to, pairs);
  return _mm512_and_si512(pairs, _mm512_set1_epi16(0x7FFF));
}

// The values of keys [low, high) of a tile, zeros for the others. Whether all of them are finite. What is `ahead`
// is asked for.
inline bool load_values(const AttentionArgs& a, int64_t head, const TileRows& rows, int64_t low, int64_t high,
                        const Tiled& w, const Ahead& ahead = {}) {
  const RowLayout& l = a.layout;
  const int64_t begin = l.shared ? head * l.key_dim * 2 : l.values + head * l.value_dim * 2;
  const auto at = [&](int64_t key) { return key >= low && key < high && rows.at[key] ? rows.at[key] + begin : nullptr; };
  __m512i largest = _mm512_setzero_si512();
  for (int64_t pair = 0; pair < kTile / 2; ++pair) {
    const uint8_t *first = at(2 * pair), *second = at(2 * pair + 1);
    uint8_t* to = w.values + pair / 16 * w.columns * kBytes + pair % 16 * 64;
    if (ahead.rows != nullptr)
      for (int64_t key : {2 * pair, 2 * pair + 1}) {
        fetch(ahead.rows[key], ahead.keys, ahead.key_bytes);
        fetch(ahead.rows[key], ahead.values, ahead.value_bytes);
      }
    for (int64_t c = 0; c < w.columns; ++c)
      largest = _mm512_max_epu16(largest, zip_values(first, second, 16 * c, l.value_dim - 16 * c, to + c * kBytes));
  }
  return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(0x7F80)) == 0;
}

// Keys 16 n to 16 n + 15 of a tile as rows of 64 bytes: where they begin, and bytes to the next row and to the next step.
struct KeyRows {
  const uint8_t* at;
  int64_t stride, step;
};
inline KeyRows key_rows(const AttentionArgs& a, int64_t head, const TileRows& rows, int64_t n, const Tiled& w) {
  const RowLayout& l = a.layout;
  const int64_t begin = head * l.key_dim * 2;
  // A block holds them side by side, and 32 columns at a time never reach beyond a key.
  if (a.block_size % kLaneRows == 0 && l.key_dim % 32 == 0) {
    for (int64_t j = 0; j < kLaneRows; ++j)
      if (const uint8_t* row = rows.at[kLaneRows * n + j]) return {row - j * l.bytes + begin, l.bytes, 64};
    return {w.keys, 64, 0};
  }
  uint8_t* to = w.keys + n * w.steps * kBytes;
  for (int64_t j = 0; j < kLaneRows; ++j) {
    const uint8_t* row = rows.at[kLaneRows * n + j];
    for (int64_t s = 0; s < w.steps; ++s)
      _mm512_store_si512(to + s * kBytes + 64 * j,
                         row == nullptr ? _mm512_setzero_si512()
                                        : pair_row(reinterpret_cast<const uint16_t*>(row + begin) + 32 * s, l.key_dim - 32 * s));
  }
  return {to, 64, kBytes};
}

// Scores of 64 keys with 16 rows. Those of keys that no row of the item sees are whatever they are.
inline void tiled_scores(const uint8_t* queries, const KeyRows (&keys)[4], const Tiled& w) {
  R1_TILE_LOAD(0, kZeros, 64);
  R1_TILE_LOAD(1, kZeros, 64);
  R1_TILE_LOAD(2, kZeros, 64);
  R1_TILE_LOAD(3, kZeros, 64);
  for (int64_t s = 0; s < w.steps; ++s) {
    R1_TILE_LOAD(4, queries + s * kBytes, 64);
    R1_TILE_LOAD(5, keys[0].at + s * keys[0].step, keys[0].stride);
    R1_TILE_DOT_BF16(0, 5, 4);
    R1_TILE_LOAD(6, keys[1].at + s * keys[1].step, keys[1].stride);
    R1_TILE_DOT_BF16(1, 6, 4);
    R1_TILE_LOAD(7, keys[2].at + s * keys[2].step, keys[2].stride);
    R1_TILE_DOT_BF16(2, 7, 4);
    R1_TILE_LOAD(5, keys[3].at + s * keys[3].step, keys[3].stride);
    R1_TILE_DOT_BF16(3, 5, 4);
  }
  R1_TILE_STORE(0, w.scores, 64);
  R1_TILE_STORE(1, w.scores + 256, 64);
  R1_TILE_STORE(2, w.scores + 512, 64);
  R1_TILE_STORE(3, w.scores + 768, 64);
}

// e^x of 16 lanes within 2 units in the last place, 0 below -87; a NaN stays one.
R1_INLINE f32x16 tiled_exp(f32x16 of) {
  const __m512 x = reinterpret_cast<__m512>(of);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (const float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(term));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
  return reinterpret_cast<f32x16>(_mm512_maskz_scalef_ps(kept, p, n));
}
R1_INLINE f32x16 larger(f32x16 a, f32x16 b) {
  return reinterpret_cast<f32x16>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}

// Of a key tile, by lane: the largest score and the sum of the weights.
struct Ends {
  f32x16 most, total;
};

// Scores -> weights as bf16, rows down. A lane sees its keys [low, high), all lanes those of [first, last) at most.
template <bool ALL>
R1_INLINE Ends tiled_weigh(float scale, i32x16 low, i32x16 high, int64_t first, int64_t last, const Tiled& w) {
  const f32x16 none = splat(-std::numeric_limits<float>::infinity());
  const auto seen = [&](int64_t j) R1_ALWAYS {
    const i32x16 key = static_cast<int32_t>(j) - i32x16{};
    return (key >= low) & (key < high);
  };
  // Key j goes to accumulator j % 4.
  f32x16 tops[4] = {splat(kLowest), splat(kLowest), splat(kLowest), splat(kLowest)};
  for (int64_t j = first / 4 * 4; j < last; j += 4)
    for (int64_t i = 0; i < 4; ++i) {
      f32x16 s = load(w.scores + 16 * (j + i)) * scale;
      if constexpr (!ALL) s = seen(j + i) ? s : none;
      store(w.scores + 16 * (j + i), s);
      tops[i] = larger(s, tops[i]);
    }
  const f32x16 most = larger(larger(tops[0], tops[1]), larger(tops[2], tops[3]));
  f32x16 sums[4] = {};
  for (int64_t half = 0; half < 2; ++half) {
    __m512i pairs[16];
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t j = 32 * half + 2 * i;
      pairs[i] = _mm512_setzero_si512();
      if (j + 1 < first || j >= last) continue;
      f32x16 e[2];
      for (int64_t odd = 0; odd < 2; ++odd) {
        e[odd] = tiled_exp(load(w.scores + 16 * (j + odd)) - most);
        if constexpr (!ALL) e[odd] = seen(j + odd) ? e[odd] : f32x16{};
        sums[(2 * i + odd) % 4] += e[odd];
      }
      pairs[i] = bf16_pairs(reinterpret_cast<__m512>(e[0]), reinterpret_cast<__m512>(e[1]));
    }
    transpose_pairs(pairs);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(w.weights + half * kBytes + 64 * i, pairs[i]);
  }
  return {most, (sums[0] + sums[1]) + (sums[2] + sums[3])};
}

inline void tiled_gather(const Tiled& w) {
  R1_TILE_LOAD(4, w.weights, 64);
  R1_TILE_LOAD(5, w.weights + kBytes, 64);
  for (int64_t c = 0; c < w.columns; ++c) {
    const uint8_t *first = w.values + c * kBytes, *second = first + w.columns * kBytes;
    float* to = w.product + c * (kBytes / 4);
    if (c % 2 == 0) {
      R1_TILE_LOAD(0, kZeros, 64);
      R1_TILE_LOAD(6, first, 64);
      R1_TILE_DOT_BF16(0, 4, 6);
      R1_TILE_LOAD(7, second, 64);
      R1_TILE_DOT_BF16(0, 5, 7);
      R1_TILE_STORE(0, to, 64);
    } else {
      R1_TILE_LOAD(1, kZeros, 64);
      R1_TILE_LOAD(2, first, 64);
      R1_TILE_DOT_BF16(1, 4, 2);
      R1_TILE_LOAD(3, second, 64);
      R1_TILE_DOT_BF16(1, 5, 3);
      R1_TILE_STORE(1, to, 64);
    }
  }
}

// One tile of keys for the rows of one key head.
inline void tiled_head(const AttentionArgs& a, const AttentionItem& item, int64_t head, int64_t tile, const TileRows& places,
                       const TileRows& next, const Tiled& w) {
  const int64_t group = a.heads / a.layout.heads, rows = item.rows * group;
  const int64_t padded = padded_16(a.layout.value_dim), record = record_floats(a.layout.value_dim);
  const int64_t lanes = (rows + kLaneRows - 1) / kLaneRows, mine = head - item.head;
  const RowLayout& l = a.layout;
  const Ahead ahead{next.at, head * l.key_dim * 2, l.key_dim * 2, l.values + head * l.value_dim * 2, l.shared ? 0 : l.value_dim * 2};
  bool finite = load_values(a, head, places, 0, kTile, w, ahead);
  KeyRows keys[4];
  for (int64_t n = 0; n < 4; ++n) keys[n] = key_rows(a, head, places, n, w);
  for (int64_t block = 0; block < lanes; ++block) {
    const int64_t first = block * kLaneRows, many = std::min(kLaneRows, rows - first);
    i32x16 position;
    std::memcpy(&position, w.position + first, sizeof position);
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const i32x16 from_start = position + static_cast<int32_t>(item.position - tile * kTile);
    i32x16 low = {}, high = from_start + 1;
    if (a.window > 0) low = from_start - static_cast<int32_t>(std::min<int64_t>(a.window, INT32_MAX / 2)) + 1;
    low = low > 0 ? low : i32x16{};
    high = high < static_cast<int32_t>(kTile) ? high : static_cast<int32_t>(kTile) - i32x16{};
    high = lane < static_cast<int32_t>(many) ? high : i32x16{};
    const i32x16 sees = low < high, idle = lane >= static_cast<int32_t>(many);
    const i32x16 everything = ((low == 0) & (high == static_cast<int32_t>(kTile))) | idle;
    const auto bits = [](i32x16 v) R1_ALWAYS { return _mm512_movepi32_mask(reinterpret_cast<__m512i>(v)); };
    const __mmask16 rows_here = bits(sees);
    if (rows_here == 0) continue;
    const i32x16 lows = sees ? low : static_cast<int32_t>(kTile) - i32x16{}, highs = sees ? high : i32x16{};
    const int64_t least = _mm512_reduce_min_epi32(reinterpret_cast<__m512i>(lows));
    const int64_t last = _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(highs));
    tiled_scores(w.queries + (mine * lanes + block) * w.steps * kBytes, keys, w);
    const Ends ends = bits(everything) == 0xFFFF ? tiled_weigh<true>(a.scale, low, high, 0, kTile, w)
                                                 : tiled_weigh<false>(a.scale, lows, highs, least, last, w);
    if (finite) tiled_gather(w);
    // What is there already, and how both are weighed.
    const int64_t place = mine * lanes * kLaneRows + first;
    f32x16 most = ends.most, total = ends.total, old_factor = {}, new_factor = {};
    // A query's first tile is the item's first, or the one in which its window begins.
    i32x16 begins = tile == 0 ? lane >= 0 : lane < 0;
    if (a.window > 0) begins = (from_start - static_cast<int32_t>(std::min<int64_t>(a.window, INT32_MAX / 2)) + 1 >= 0) | begins;
    if (item.partials == nullptr) {
      const f32x16 before = load(w.most + place);
      const f32x16 top = begins ? most : larger(most, before);
      old_factor = tiled_exp(before - top);
      new_factor = tiled_exp(most - top);
      total = begins ? total : load(w.total + place) * old_factor + total * new_factor;
      most = top;
      const f32x16 kept_most = sees ? most : before, kept_total = sees ? total : load(w.total + place);
      store(w.most + place, kept_most);
      store(w.total + place, kept_total);
    }
    alignas(64) float old_factors[16], new_factors[16], mosts[16], totals[16];
    store(old_factors, old_factor);
    store(new_factors, new_factor);
    store(mosts, most);
    store(totals, total);
    alignas(64) int32_t lows_of[16], highs_of[16];
    std::memcpy(lows_of, &low, sizeof low);
    std::memcpy(highs_of, &high, sizeof high);
    const __mmask16 fresh = bits(begins);
    for (int64_t i = 0; i < many; ++i) {
      if ((rows_here >> i & 1) == 0) continue;
      if (!finite) {  // 0 times infinity is no 0: each row is given the values that it sees
        load_values(a, head, places, lows_of[i], highs_of[i], w);
        tiled_gather(w);
      }
      const float* from = w.product + 16 * i;
      if (item.partials != nullptr) {
        const int64_t r = first + i, query = r / group * a.heads + head * group + r % group;
        float* to = item.partials + (query * item.stride + tile - item.first_tile) * record;
        for (int64_t c = 0; c < w.columns; ++c) store(to + 16 * c, load(from + c * (kBytes / 4)));
        to[padded] = mosts[i];
        to[padded + 1] = totals[i];
        continue;
      }
      float* sums = w.sums + (place + i) * record;
      if ((fresh >> i & 1) != 0) {
        for (int64_t c = 0; c < w.columns; ++c) store(sums + 16 * c, load(from + c * (kBytes / 4)));
      } else {
        const f32x16 kept = splat(old_factors[i]), added = splat(new_factors[i]);
        for (int64_t c = 0; c < w.columns; ++c)
          store(sums + 16 * c, fma(load(from + c * (kBytes / 4)), added, load(sums + 16 * c) * kept));
      }
    }
    if (!finite) load_values(a, head, places, 0, kTile, w);
  }
}

inline void tiled_item(const AttentionArgs& a, const AttentionItem& item) {
  const int64_t group = a.heads / a.layout.heads, rows = item.rows * group, dim = a.layout.key_dim;
  const int64_t lanes = (rows + kLaneRows - 1) / kLaneRows;
  const Tiled w = tiled_workspace(a, lanes * kLaneRows * item.heads);
  const auto of_head = [&](int64_t h, int64_t r) R1_ALWAYS { return (item.head + h) * group + r % group; };
  typed(a.q, a.q_bf16, [&](auto q) R1_ALWAYS {
    for (int64_t h = 0; h < item.heads; ++h)
      for (int64_t block = 0; block < lanes; ++block)
        for (int64_t s = 0; s < w.steps; ++s) {
          __m512i r[16];
          for (int64_t i = 0; i < kLaneRows; ++i) {
            const int64_t row = block * kLaneRows + i;
            r[i] = row < rows ? pair_row(q + (item.row + row / group) * a.q_token + of_head(h, row) * a.q_head + 32 * s,
                                         dim - 32 * s)
                              : _mm512_setzero_si512();
          }
          transpose_pairs(r);
          uint8_t* to = w.queries + ((h * lanes + block) * w.steps + s) * kBytes;
          for (int i = 0; i < 16; ++i) _mm512_store_si512(to + 64 * i, r[i]);
        }
  });
  for (int64_t r = 0; r < lanes * kLaneRows; ++r)
    w.position[r] = static_cast<int32_t>(r < rows ? r / group : 0);
  std::memset(w.most, 0, static_cast<size_t>(2 * lanes * kLaneRows * item.heads) * 4);
  const TileRegisters registers;
  TileRows places, next;
  find_places(a, item, item.tile, next);
  for (int64_t tile = item.tile; tile < item.tiles_end; ++tile) {
    places = next;
    find_places(a, item, tile + 1, next);
    for (int64_t h = 0; h < item.heads; ++h) tiled_head(a, item, item.head + h, tile, places, next, w);
  }
  if (item.partials != nullptr) return;
  const int64_t record = record_floats(a.layout.value_dim);
  for (int64_t h = 0; h < item.heads; ++h)
    for (int64_t r = 0; r < rows; ++r) {
      float* sums = w.sums + (h * lanes * kLaneRows + r) * record;
      sums[padded_16(a.layout.value_dim) + 1] = w.total[h * lanes * kLaneRows + r];
      write_out(a, item.row + r / group, of_head(h, r), sums);
    }
}

inline void attend_amx(const AttentionArgs& a, int64_t begin, int64_t end) {
  if (a.layout.storage != Storage::bf16) return attend(a, begin, end);
  AttentionPlan plan(a);
  plan.seek(begin);
  for (int64_t i = begin; i < end; ++i) tiled_item(a, plan.next());
}

inline void merge_amx(const AttentionArgs& a, int64_t begin, int64_t end) {
  if (a.layout.storage != Storage::bf16) return merge(a, begin, end);
  merge_with(a, begin, end, [](f32x16 x) R1_ALWAYS { return tiled_exp(x); });
}

}  // namespace R1_PATH
}  // namespace r1
