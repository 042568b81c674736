// Products with packed weights: the layout, and the arguments of the kernels that read it.
//
// A weight (n, k) is cut into panels of 64 output columns. A panel is one stream, read front to back: per group of k
// the codes, in units of 256 bytes, then the group's 64 scales and, if it has them, its 64 minima. A unit holds, for
// each of the 64 columns,
//   4 bit:   8 k, as 4 bytes: byte b has k = b in its low half and k = 4 + b in its high half
//   8 bit:   4 k, as 4 bytes: the signed value + 128
//   bf16:    2 k
//   fp32:    1 k
// n is padded to whole panels, k to whole groups (32 for bf16, none for fp32), with codes of weight 0. With 4 bits `by_row`
// the scales are whole numbers, whose unit is the row's own: 64 fp32 behind the panel's last group.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pool.h"

namespace r1 {

constexpr int64_t kPanel = 64;  // columns
constexpr int64_t kUnit = 256;  // bytes
constexpr int64_t kAlign = 64;
constexpr int64_t kMostByRow = 65536;  // k of weights with a scale by row: their sums are 32-bit integers
constexpr int64_t kStepByRow = 64;     // of which whole steps are multiplied
constexpr int64_t kTileK = 32;  // k of a bf16 matrix tile (AMX)
constexpr int64_t kTileRows = 16;

enum class Kind : int32_t { fp32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

struct Format {
  Kind kind;
  int32_t group;    // k per scale: 32 or 128; 0 without scales (fp32, bf16)
  bool minima;      // 4 bit only: w = scale * code + minimum; else w = scale * (code - offset), offset 8 or 128
  bool wide;        // scales and minima are fp32; else fp16
  // 8 bit in groups of 128: the scale is the same for all of a row. 4 bit in groups of 32 without minima: scales are whole
  // multiples, -15 to 15, of one that is.
  bool by_row = false;

  int64_t unit_k() const { return kind == Kind::int4 ? 8 : kind == Kind::int8 ? 4 : kind == Kind::bf16 ? 2 : 1; }
  int64_t step_k() const { return group > 0 ? group : kind == Kind::bf16 ? kTileK : unit_k(); }
  bool multiples() const { return by_row && kind == Kind::int4; }
  int64_t padded_k(int64_t k) const {
    const int64_t step = multiples() ? kStepByRow : step_k();
    return (k + step - 1) / step * step;
  }
  int64_t groups(int64_t k) const { return group > 0 ? padded_k(k) / group : 0; }
  int64_t scale_bytes() const { return group > 0 ? kPanel * (wide ? 4 : 2) * (minima ? 2 : 1) : 0; }
  int64_t group_bytes() const { return step_k() / unit_k() * kUnit + scale_bytes(); }
  int64_t row_bytes() const { return multiples() ? kPanel * 4 : 0; }  // of the rows' own scales
  int64_t panel_bytes(int64_t k) const { return padded_k(k) / step_k() * group_bytes() + row_bytes(); }
  int64_t bytes(int64_t n, int64_t k) const { return (n + kPanel - 1) / kPanel * panel_bytes(k); }
  int32_t offset() const { return minima ? 0 : kind == Kind::int4 ? 8 : 128; }
};

struct Weight {
  const uint8_t* data;
  int64_t n;
  int64_t k;
  Format format;
  int32_t exponent = 0;  // 2^exponent times the largest weight is 2^13 to 2^14; 0 where there are no codes

  int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return format.panel_bytes(k); }
  const uint8_t* panel(int64_t p) const { return data + p * panel_bytes(); }
  // The own scales of a panel's rows, where its format has multiples of them.
  const float* row_scales(const uint8_t* panel) const {
    return reinterpret_cast<const float*>(panel + panel_bytes() - format.row_bytes());
  }
};

// One group of a row of activations: x = scale * code, and the sum of its codes.
struct Act {
  float scale;
  int32_t sum;
};

// Matrix tiles read 16 rows, from whichever row a tile begins, and lie in pairs: so many rows of codes there is room for.
constexpr int64_t room_rows(int64_t rows) { return rows + (rows > kTileRows ? 2 : 1) * kTileRows - 1; }

// Rows (m, k) of fp32 or bf16 -> what the product reads: int8 codes in groups with their `act`, or padded bf16.
struct PrepareArgs {
  const void* x;
  bool x_bf16;
  int64_t m, k, ldx;     // ldx: elements between rows
  Format format;
  bool to_bf16;          // or, by_row, to two bytes: see reads_bf16
  bool tiled;            // in tiles of 16 rows, see linear_amx.h; else row by row
  void* codes;           // (m, padded k): int8, or bf16
  Act* act;              // (m, groups); unused for bf16
};
Range prepare_range(const PrepareArgs&);

constexpr int32_t kNoGate = -1;

// out (m, n) = x (m, k) @ weight^T + bias. The sum over k runs in one order for every m and every thread.
struct LinearArgs {
  Weight weight;
  const void* x;         // int8 codes (m, padded k), bf16 (m, padded k), or fp32 rows `ldx` elements apart
  int64_t m, ldx;
  const Act* act;
  bool tiled;            // as x was prepared
  int64_t row_tile;      // rows that the path's kernel takes at once
  const float* bias;     // null for none
  void* out;
  bool out_bf16;
  int64_t ldo;           // elements between rows
  // Else the first half of the columns goes through a gate (rows.h) and is multiplied by the second: out is (m, n / 2), fp32.
  // For weights that `fuses_gate` alone.
  int32_t gate = kNoGate;
};
Range linear_range(const LinearArgs&);

constexpr int64_t kRowBlock = 96;     // rows at most that share a pass over a panel: their codes stay in the caches
constexpr int64_t kTiledBlock = 256;  // the same for matrix tiles, for which a panel is expanded
constexpr int64_t kTiledBytes = 1200 << 10;  // of these rows: they stay in the second cache

// Whether an item is four panels: through matrix tiles, where rows are so long that they leave the second cache between
// one panel and the next. Each part of k then serves four.
inline bool by_fours(int64_t m, const Weight& w, int64_t tile) {
  const bool tiles = tile == kTileRows && w.format.kind != Kind::fp32;
  return tiles && 2 * std::min(m, kTiledBlock) * w.k > 2 * kTiledBytes;
}
inline int64_t panel_items(int64_t m, const Weight& w, int64_t tile) {
  return by_fours(m, w, tile) ? (w.panels() + 3) / 4 : w.panels();
}

// The panels of an item of a product through matrix tiles, which share its rows: both halves of a gate, four, or one.
struct Panels {
  int64_t number[4];
  int64_t count;
};
inline Panels panels_of(const LinearArgs& a, int64_t item) {
  const int64_t all = a.weight.panels(), most = by_fours(a.m, a.weight, a.row_tile) ? 4 : 1;
  if (a.gate != kNoGate) return {{item, item + all / 2}, 2};
  const int64_t first = item * most;
  return {{first, first + 1, first + 2, first + 3}, std::min(most, all - first)};
}

// Rows per item of a product of m rows: narrow ones are cut along their rows as well, to be shared out evenly.
inline int64_t row_block(int64_t m, const Weight& w, int64_t tile) {
  const bool tiled = tile == kTileRows;
  const int64_t cached = std::clamp(kTiledBytes / (2 * w.k), int64_t{128}, kTiledBlock) / 32 * 32;
  const int64_t fit = !tiled ? kRowBlock : by_fours(m, w, tile) ? kTiledBlock : cached;
  const int64_t least = std::max<int64_t>(tile, 6), wanted = (tiled ? 12 : 24) / panel_items(m, w, tile) + 1;
  const int64_t fewest = (m + fit - 1) / fit, most = (m + least - 1) / least;
  const int64_t blocks = std::max(fewest, std::min(wanted, most));
  const int64_t rows = blocks > 0 ? (m + blocks - 1) / blocks : 1;
  const int64_t whole = tiled && rows > tile ? 2 * tile : tile;  // tiles, and pairs of tiles
  return (rows + whole - 1) / whole * whole;
}
inline int64_t row_blocks(int64_t m, const Weight& w, int64_t tile) {
  const int64_t rows = row_block(m, w, tile);
  return (m + rows - 1) / rows;
}

// Items of a product without a gate.
inline int64_t linear_items(int64_t m, const Weight& w, int64_t tile) {
  return m > 0 ? panel_items(m, w, tile) * row_blocks(m, w, tile) : 0;
}

// Rows of the weight itself, by id: what an embedding looks up. out (m, k).
struct UnpackArgs {
  Weight weight;
  const int64_t* ids;
  int64_t m;
  void* out;
  bool out_bf16;
};
Range unpack_range(const UnpackArgs&);
void unpack(const UnpackArgs&, int64_t begin, int64_t end);

// Writes rows [first, first + count) of a weight into the packed data of `weight`. Plain values for fp32 and bf16 (as
// bits); codes with scales (count, groups) and minima for the others.
struct PackArgs {
  Weight weight;
  uint8_t* data;
  int64_t first, count;
  const void* values;    // float (count, k), uint16 bits (count, k), or uint8 codes (count, k)
  const float* scales;
  const float* minima;
  const float* row_scales;  // (count), where the format has multiples of them
};
Range pack_range(const PackArgs&);
void pack(const PackArgs&, int64_t begin, int64_t end);

}  // namespace r1
