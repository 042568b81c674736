// Causal attention over a paged pool of keys and values, for any mix of one-token and longer spans in one call.
//
// Keys are taken in tiles of 64 at fixed absolute positions (0 to 63, 64 to 127 and so on). For each query and tile:
// the scores, each a sum over the head's columns in ascending order; their largest m; the weights e^(score - m), their
// sum l, and the weighted sum a of the values, keys ascending. Tiles are merged one by one in ascending order:
//   M' = max(M, m);  L = L e^(M - M') + l e^(m - M');  A = A e^(M - M') + a e^(m - M');  at the end A / L.
// That is all that a query's result depends on: not on the queries beside it, nor on how the tiles are shared out.
// What a query does not see is never read for it, so neither are rows that hold nothing yet.
#pragma once

#include <cstdint>

#include "rows.h"

namespace r1 {

constexpr int64_t kTile = 64;  // keys
constexpr int64_t kSpan = 4;   // numbers that describe a span

struct AttentionArgs {
  const void* q;               // (tokens, heads, key_dim)
  bool q_bf16;
  int64_t heads, q_token, q_head;
  const uint8_t* pool;         // rows of `layout`, block * block_size + offset
  RowLayout layout;
  int64_t block_size;
  const int64_t* span_count;   // read at every run, as are the spans
  const int64_t* spans;        // (span_count, 4): first row of q, rows, position of the first, its place in `tables`
  const int32_t* tables;       // block ids; a span's begin at its place
  int64_t window;              // a query sees that many positions, its own included; 0: all
  float scale;
  void* out;                   // (tokens, heads, value_dim), contiguous; rows of no span are left alone
  bool out_bf16;
  float* scratch;              // for partial results of few long sequences that many threads share; may be null
  int64_t scratch_floats;
};

// Floats of scratch with which `rows` rows of q over `length` positions can be shared out.
int64_t attention_scratch(int64_t rows, int64_t heads, int64_t value_dim, int64_t length);

Range attention_range(const AttentionArgs&);
// The second loop merges what the first left in scratch; most often that is nothing.
Range attention_merge_range(const AttentionArgs&);

struct AttentionKernels {
  void (*attend)(const AttentionArgs&, int64_t, int64_t);
  void (*merge)(const AttentionArgs&, int64_t, int64_t);
};

// One item of the first loop: some queries of one span, over some tiles, with all key heads where the span is short (so
// that a row of the pool is read at once), else with one.
struct AttentionItem {
  int64_t row, rows;           // of q
  int64_t position;            // of the first
  int64_t head, heads;         // the first key head, and how many
  int64_t tile, tiles_end;
  const int32_t* table;
  float* partials;             // (rows, heads, stride) records of its span, or null: the item is all tiles, write `out`
  int64_t first_tile, stride;  // tile of a query's first record; records per query head
};

static constexpr int64_t padded_16(int64_t n) { return (n + 15) / 16 * 16; }
// A record: the weighted values (padded), then m and l.
static constexpr int64_t record_floats(int64_t value_dim) { return padded_16(value_dim) + 16; }

// How a call is cut into items; the same at every time of asking within a run.
class AttentionPlan {
 public:
  explicit AttentionPlan(const AttentionArgs& args);
  // The items from number `begin` on, one per call.
  void seek(int64_t begin);
  AttentionItem next();
  int64_t items() const { return items_; }
  int64_t grain() const { return grain_; }
  // Queries (rows of q in spans that are shared out) to merge, by number.
  int64_t merges() const { return merges_; }
  AttentionItem merge_of(int64_t number) const;

 private:
  struct Shape {
    int64_t blocks;            // of queries
    int64_t heads;             // into how many items the key heads are cut: 1, or all
    int64_t parts;             // of the tiles; 1: not shared out
    int64_t first_tile, tiles;
    int64_t records;           // floats of scratch
  };
  Shape shape(const int64_t* span) const;
  int64_t first_tile(int64_t position) const;

  const AttentionArgs& a_;
  int64_t spans_ = 0;
  int64_t block_ = 1;          // rows of q per block
  int64_t part_ = 0;           // tiles per part; 0: nothing is shared out
  int64_t items_ = 0, merges_ = 0, grain_ = 1;
  // Where `next` stands.
  int64_t span_ = 0, item_ = 0;
  float* partials_ = nullptr;
};

// Memory of the calling thread, aligned to 64 bytes, that lasts until its next call.
float* thread_scratch(int64_t floats);

}  // namespace r1
