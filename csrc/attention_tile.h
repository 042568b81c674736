// A tile of keys and values, brought from the pool to where the inner loops of attention read it.
#pragma once

#include "attention.h"
#include "rows_impl.h"

namespace r1 {
namespace R1_PATH {

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

inline Workspace workspace(const AttentionArgs& a, int64_t rows, [[maybe_unused]] int64_t head_rows) {
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

// What of the next tile's rows is asked for while a tile is worked on: a line now and then; many at once would stall.
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

}  // namespace R1_PATH
}  // namespace r1
