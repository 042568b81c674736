// The kernels of gradient.h, compiled once per path.
#pragma once

#include "attention_impl.h"
#include "gradient.h"

namespace r1 {
namespace R1_PATH {

template <class T>
void gated_gradient_row(const T* grad, const T* gate, const T* up, T* gate_out, T* up_out, int64_t dim) {
  each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
    const f32x16 g = load_some(grad + i, n), x = load_some(gate + i, n);
    const f32x16 share = 1.0f / (exp(-x) + 1.0f);
    store_some(gate_out + i, g * load_some(up + i, n) * (share * fma(x, 1.0f - share, splat(1.0f))), n);
    store_some(up_out + i, g * (x * share), n);
  });
}

inline void gated_gradient(const GatedGradientArgs& a, int64_t begin, int64_t end) {
  typed(a.grad, a.bf16, [&](auto grad) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(grad)>>;
    for (int64_t row = begin; row < end; ++row)
      gated_gradient_row(grad + row * a.grad_row, static_cast<const T*>(a.gate) + row * a.gate_row,
                         static_cast<const T*>(a.up) + row * a.up_row, static_cast<T*>(a.gate_out) + row * a.out_row,
                         static_cast<T*>(a.up_out) + row * a.out_row, a.dim);
  });
}

template <class G, class X, class W>
void norm_gradient_row(const G* grad, const X* x, const W* weight, X* out, int64_t dim, float eps) {
  f32x16 shared = {};
  each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
    shared = fma(load_some(grad + i, n) * load_some(weight + i, n), load_some(x + i, n), shared);
  });
  const float size = static_cast<float>(dim), mean = sum_of_squares<false>(x, dim) / size + eps;
  const f32x16 scale = splat(1.0f / std::sqrt(mean)), share = splat(add_lanes(shared) / size / mean);
  each_16(dim, [&](int64_t i, int64_t n) R1_ALWAYS {
    const f32x16 g = load_some(grad + i, n) * load_some(weight + i, n);
    store_some(out + i, scale * fma(-share, load_some(x + i, n), g), n);
  });
}

inline void norm_gradient(const NormGradientArgs& a, int64_t begin, int64_t end) {
  typed(a.grad, a.grad_bf16, [&](auto grad) {
    typed(a.x, a.x_bf16, [&](auto x) {
      typed(a.weight, a.weight_bf16, [&](auto weight) {
        using X = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
        for (int64_t item = begin; item < end; ++item) {
          const int64_t token = item / a.heads, head = item % a.heads;
          norm_gradient_row(grad + token * a.grad_token + head * a.grad_head, x + token * a.x_token + head * a.x_head,
                            weight, static_cast<X*>(a.out) + item * a.dim, a.dim, a.eps);
        }
      });
    });
  });
}

// out (m, n) += a (m, k) b (k, n); n is a multiple of 16. An element's products are added with k ascending.
template <int R, int C>
R1_INLINE void add_tile(int64_t k, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_row, float* out,
                        int64_t out_row) {
  lanes sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = load_lanes(out + r * out_row + kLanes * c);
  for (int64_t i = 0; i < k; ++i) {
    lanes right[C];
    for (int c = 0; c < C; ++c) right[c] = load_lanes(b + i * b_row + kLanes * c);
    for (int r = 0; r < R; ++r) {
      const lanes left = splat_lanes(a[r * a_row + i * a_k]);
      for (int c = 0; c < C; ++c) sums[r][c] = fma_lanes(left, right[c], sums[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store_lanes(out + r * out_row + kLanes * c, sums[r][c]);
}
template <int C>
void add_columns(int64_t m, int64_t k, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_row,
                 float* out, int64_t out_row) {
  int64_t r = 0;
  for (; r + 4 <= m; r += 4) add_tile<4, C>(k, a + r * a_row, a_row, a_k, b, b_row, out + r * out_row, out_row);
  for (; r < m; ++r) add_tile<1, C>(k, a + r * a_row, a_row, a_k, b, b_row, out + r * out_row, out_row);
}
inline void add_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_k, const float* b,
                        int64_t b_row, float* out, int64_t out_row) {
  int64_t c = 0;
  for (; c + kColumns * kLanes <= n; c += kColumns * kLanes)
    add_columns<kColumns>(m, k, a, a_row, a_k, b + c, b_row, out + c, out_row);
  for (; c < n; c += kLanes) add_columns<1>(m, k, a, a_row, a_k, b + c, b_row, out + c, out_row);
}

constexpr int64_t kQueryRows = 32;  // that are worked on at a time

// Memory of one family and key head, in floats from `thread_scratch`. Keys and values in tiles of 64: rows as they are,
// and transposed (columns, 64).
struct GradientRoom {
  int64_t key_dim, value_dim;            // padded
  float *keys, *key_tiles, *value_tiles; // of the family's first sequence, and behind it of the one at hand
  float *of_keys, *of_values;
  float *queries, *grads, *of_queries;   // (32, dim)
  float *weights, *of_scores;            // (tiles, 32, 64)
};

inline GradientRoom gradient_room(const AttentionGradientArgs& a, int64_t length) {
  GradientRoom w{};
  w.key_dim = padded_16(a.key_dim), w.value_dim = padded_16(a.value_dim);
  const int64_t rows = (length + kTile - 1) / kTile * kTile;
  float* p = thread_scratch(rows * (3 * w.key_dim + 2 * w.value_dim + 2 * kQueryRows) +
                            kQueryRows * (2 * w.key_dim + w.value_dim));
  const auto take = [&](int64_t floats) { float* at = p; p += floats; return at; };
  w.keys = take(rows * w.key_dim), w.key_tiles = take(rows * w.key_dim), w.value_tiles = take(rows * w.value_dim);
  w.of_keys = take(rows * w.key_dim), w.of_values = take(rows * w.value_dim);
  w.queries = take(kQueryRows * w.key_dim), w.of_queries = take(kQueryRows * w.key_dim);
  w.grads = take(kQueryRows * w.value_dim);
  w.weights = take(rows * kQueryRows), w.of_scores = take(rows * kQueryRows);
  return w;
}

inline void take_row(const float* from, int64_t dim, float* to, int64_t padded) {
  std::memcpy(to, from, static_cast<size_t>(dim) * 4);
  std::memset(to + dim, 0, static_cast<size_t>(padded - dim) * 4);
}

// Keys and values of `count` rows from `row` on to places from `base` on; their gradients begin at zero.
inline void take_keys(const AttentionGradientArgs& a, int64_t head, int64_t row, int64_t count, int64_t base,
                      const GradientRoom& w) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t place = base + j, tile = place / kTile, lane = place % kTile;
    const float* key = a.k + (row + j) * a.k_token + head * a.k_head;
    const float* value = a.v + (row + j) * a.v_token + head * a.v_head;
    take_row(key, a.key_dim, w.keys + place * w.key_dim, w.key_dim);
    float* to = w.key_tiles + tile * kTile * w.key_dim + lane;
    for (int64_t i = 0; i < w.key_dim; ++i) to[i * kTile] = i < a.key_dim ? key[i] : 0.0f;
    to = w.value_tiles + tile * kTile * w.value_dim + lane;
    for (int64_t i = 0; i < w.value_dim; ++i) to[i * kTile] = i < a.value_dim ? value[i] : 0.0f;
  }
  std::memset(w.of_keys + base * w.key_dim, 0, static_cast<size_t>(count * w.key_dim) * 4);
  std::memset(w.of_values + base * w.value_dim, 0, static_cast<size_t>(count * w.value_dim) * 4);
}

// Products of `count` rows with the 64 columns of a tile.
inline void score_rows(const float* rows, int64_t count, int64_t dim, const float* tile, float* out) {
  const Ahead nothing{};
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) score<4>(rows + r * dim, dim, tile, out + r * kTile, nothing);
  for (; r < count; ++r) score<1>(rows + r * dim, dim, tile, out + r * kTile, nothing);
}

// One row's scores -> weights, and in `of_scores` the gradient of the weights -> that of the products q k, in place. Keys
// outside [low, high) weigh nothing; `low_tile` to `tiles` are there, 32 rows of 64 apart.
inline void weigh_row(float* weights, float* of_scores, float scale, int64_t low_tile, int64_t tiles, int64_t low,
                      int64_t high) {
  constexpr i32x16 kNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto each = [&](auto f) R1_ALWAYS {
    for (int64_t tile = low_tile; tile < tiles; ++tile)
      for (int64_t j = 0; j < kTile; j += 16) {
        const i32x16 key = kNumbers + static_cast<int32_t>(tile * kTile + j);
        const i32x16 seen = (key >= static_cast<int32_t>(low)) & (key < static_cast<int32_t>(high));
        f(tile * kTile * kQueryRows + j, seen);
      }
  };
  f32x16 most = splat(kLowest);
  each([&](int64_t at, i32x16 seen) R1_ALWAYS {
    const f32x16 s = load(weights + at) * scale;
    most = max(seen ? s : splat(kLowest), most);
  });
  const float m = most_of(most);
  f32x16 sum = {}, shared = {};
  each([&](int64_t at, i32x16 seen) R1_ALWAYS {
    const f32x16 weight = seen ? exp(load(weights + at) * scale - m) : f32x16{};
    store(weights + at, weight);
    sum += weight;
    shared = fma(weight, seen ? load(of_scores + at) : f32x16{}, shared);
  });
  const float total = add_lanes(sum), mean = add_lanes(shared) / total, share = 1.0f / total;
  each([&](int64_t at, i32x16 seen) R1_ALWAYS {
    const f32x16 weight = load(weights + at) * share;
    store(weights + at, weight);
    store(of_scores + at, seen ? weight * (load(of_scores + at) - mean) * scale : f32x16{});
  });
}

// What `count` queries of one head, the first at position `first`, add to the gradients of keys and values, and their own.
inline void add_queries(const AttentionGradientArgs& a, int64_t head, int64_t row, int64_t count, int64_t first,
                        const GradientRoom& w) {
  for (int64_t r = 0; r < count; ++r) {
    take_row(a.q + (row + r) * a.q_token + head * a.q_head, a.key_dim, w.queries + r * w.key_dim, w.key_dim);
    take_row(a.grad + (row + r) * a.grad_token + head * a.grad_head, a.value_dim, w.grads + r * w.value_dim, w.value_dim);
  }
  const int64_t visible = first + count, tiles = (visible + kTile - 1) / kTile;
  const auto lowest = [&](int64_t position) { return a.window > 0 && position >= a.window ? position - a.window + 1 : 0; };
  const int64_t low_tile = lowest(first) / kTile;
  for (int64_t tile = low_tile; tile < tiles; ++tile) {
    const int64_t at = tile * kTile * kQueryRows;
    score_rows(w.queries, count, w.key_dim, w.key_tiles + tile * kTile * w.key_dim, w.weights + at);
    score_rows(w.grads, count, w.value_dim, w.value_tiles + tile * kTile * w.value_dim, w.of_scores + at);
  }
  for (int64_t r = 0; r < count; ++r)
    weigh_row(w.weights + r * kTile, w.of_scores + r * kTile, a.scale, low_tile, tiles, lowest(first + r), first + r + 1);
  std::memset(w.of_queries, 0, static_cast<size_t>(count * w.key_dim) * 4);
  for (int64_t tile = low_tile; tile < tiles; ++tile) {
    const int64_t at = tile * kTile * kQueryRows, key = tile * kTile;
    const int64_t keys = visible - key < kTile ? visible - key : kTile;
    const float *weights = w.weights + at, *of_scores = w.of_scores + at;
    add_product(count, w.key_dim, keys, of_scores, kTile, 1, w.keys + key * w.key_dim, w.key_dim, w.of_queries, w.key_dim);
    add_product(keys, w.key_dim, count, of_scores, 1, kTile, w.queries, w.key_dim, w.of_keys + key * w.key_dim, w.key_dim);
    add_product(keys, w.value_dim, count, weights, 1, kTile, w.grads, w.value_dim, w.of_values + key * w.value_dim,
                w.value_dim);
  }
  for (int64_t r = 0; r < count; ++r)
    std::memcpy(a.q_out + ((row + r) * a.heads + head) * a.key_dim, w.of_queries + r * w.key_dim,
                static_cast<size_t>(a.key_dim) * 4);
}

inline void give_keys(const AttentionGradientArgs& a, int64_t head, int64_t row, int64_t count, int64_t base,
                      const GradientRoom& w) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t to = (row + j) * a.kv_heads + head;
    std::memcpy(a.k_out + to * a.key_dim, w.of_keys + (base + j) * w.key_dim, static_cast<size_t>(a.key_dim) * 4);
    std::memcpy(a.v_out + to * a.value_dim, w.of_values + (base + j) * w.value_dim, static_cast<size_t>(a.value_dim) * 4);
  }
}

inline void attention_gradient(const AttentionGradientArgs& a, int64_t begin, int64_t end) {
  const int64_t group = a.heads / a.kv_heads;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t family = item / a.kv_heads, head = item % a.kv_heads;
    const int64_t root = a.families[family], last = a.families[family + 1];
    if (root == last) continue;
    const int64_t *of_root = a.sequences + 2 * root, prefix = of_root[1];
    int64_t longest = 0;
    for (int64_t s = root + 1; s < last; ++s) longest = std::max(longest, a.sequences[2 * s + 1]);
    const GradientRoom w = gradient_room(a, prefix + longest);
    for (int64_t s = root; s < last; ++s) {
      const int64_t row = a.sequences[2 * s], count = a.sequences[2 * s + 1], base = s == root ? 0 : prefix;
      take_keys(a, head, row, count, base, w);
      for (int64_t q = 0; q < group; ++q)
        for (int64_t i = 0; i < count; i += kQueryRows)
          add_queries(a, head * group + q, row + i, std::min(kQueryRows, count - i), base + i, w);
      if (s != root) give_keys(a, head, row, count, base, w);
    }
    give_keys(a, head, of_root[0], prefix, 0, w);
  }
}

inline GradientKernels gradient_kernels() { return {gated_gradient, norm_gradient, attention_gradient}; }

}  // namespace R1_PATH
}  // namespace r1
