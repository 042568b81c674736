#include "attention.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace r1 {
namespace {

constexpr int64_t kQueries = 64;    // query heads that share a pass over the keys
constexpr int64_t kShareTiles = 4;  // a part has at least so many tiles

struct Memory {
  float* data = nullptr;
  int64_t floats = 0;
  ~Memory() { std::free(data); }
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

float* thread_scratch(int64_t floats) {
  thread_local Memory memory;
  if (memory.floats < floats) {
    std::free(memory.data);
    memory.floats = 0;
    memory.data = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(padded_16(floats)) * 4));
    if (memory.data == nullptr) throw std::bad_alloc();
    memory.floats = floats;
  }
  return memory.data;
}

int64_t attention_scratch(int64_t rows, int64_t heads, int64_t value_dim, int64_t length) {
  return rows * heads * divide_up(length, kTile) * record_floats(value_dim);
}

AttentionPlan::AttentionPlan(const AttentionArgs& args) : a_(args), spans_(*args.span_count) {
  const int64_t group = a_.heads / a_.layout.heads;
  block_ = std::max<int64_t>(1, kQueries / group);
  int64_t pairs = 0, tiles = 0, long_tiles = 0;  // pairs: (query head, tile)
  for (int64_t s = 0; s < spans_; ++s) {
    const Shape one = shape(a_.spans + s * kSpan);
    items_ += one.blocks * one.heads;
    tiles += one.blocks * one.tiles * a_.layout.heads;
    pairs += a_.spans[s * kSpan + 1] * a_.heads * one.tiles;
    if (one.blocks == 1) long_tiles += one.tiles;
  }
  const int64_t threads = pool().threads();
  if (threads > 1 && items_ < 8 * threads && long_tiles >= 2 * kShareTiles) {
    part_ = std::max(kShareTiles, divide_up(long_tiles, 8 * threads));
    int64_t floats = 0;
    items_ = 0;
    for (int64_t s = 0; s < spans_; ++s) {
      const int64_t* span = a_.spans + s * kSpan;
      const Shape one = shape(span);
      items_ += one.blocks * one.heads * one.parts;
      floats += one.records;
      if (one.parts > 1) merges_ += span[1];
    }
    if (floats > a_.scratch_floats) {
      part_ = merges_ = items_ = 0;
      for (int64_t s = 0; s < spans_; ++s) {
        const Shape one = shape(a_.spans + s * kSpan);
        items_ += one.blocks * one.heads;
      }
    }
  }
  // Multiply-adds, and what bringing a tile's keys and values into place costs, in the same unit: 300 000 take about
  // 5 microseconds.
  const int64_t width = a_.layout.key_dim + a_.layout.value_dim;
  const int64_t work = std::max<int64_t>(1, (pairs + 4 * tiles) * kTile * width / std::max<int64_t>(1, items_));
  grain_ = std::clamp<int64_t>(divide_up(300'000, work), 1, std::max<int64_t>(1, items_ / (4 * threads)));
}

int64_t AttentionPlan::first_tile(int64_t position) const {
  return a_.window > 0 && position >= a_.window ? (position - a_.window + 1) / kTile : 0;
}

AttentionPlan::Shape AttentionPlan::shape(const int64_t* span) const {
  Shape one{};
  if (span[1] <= 0) return one;
  one.blocks = divide_up(span[1], block_);
  one.heads = one.blocks == 1 ? 1 : a_.layout.heads;
  one.first_tile = first_tile(span[2]);
  one.tiles = (span[2] + span[1] - 1) / kTile + 1 - one.first_tile;
  one.parts = one.blocks == 1 && part_ > 0 ? divide_up(one.tiles, part_) : 1;
  if (one.parts > 1) one.records = span[1] * a_.heads * one.tiles * record_floats(a_.layout.value_dim);
  return one;
}

void AttentionPlan::seek(int64_t begin) {
  span_ = 0;
  item_ = begin;
  partials_ = a_.scratch;
}

AttentionItem AttentionPlan::next() {
  for (;; ++span_) {
    const int64_t* span = a_.spans + span_ * kSpan;
    const Shape one = shape(span);
    const int64_t count = one.blocks * one.heads * one.parts;
    if (item_ >= count) {
      item_ -= count;
      partials_ += one.records;
      continue;
    }
    AttentionItem item{};
    const int64_t part = item_ % one.parts;
    item.head = item_ / one.parts % one.heads;
    item.heads = a_.layout.heads / one.heads;
    // The last queries see most keys: the longest items go first.
    const int64_t block = one.blocks - 1 - item_ / one.parts / one.heads;
    item.row = span[0] + block * block_;
    item.rows = std::min(block_, span[1] - block * block_);
    item.position = span[2] + block * block_;
    item.tile = first_tile(item.position);
    item.tiles_end = (item.position + item.rows - 1) / kTile + 1;
    item.table = a_.tables + span[3];
    if (one.parts > 1) {
      item.partials = partials_;
      item.first_tile = one.first_tile;
      item.stride = one.tiles;
      item.tile = one.first_tile + part * part_;
      item.tiles_end = std::min(item.tile + part_, one.first_tile + one.tiles);
    }
    ++item_;
    return item;
  }
}

AttentionItem AttentionPlan::merge_of(int64_t number) const {
  float* partials = a_.scratch;
  for (const int64_t* span = a_.spans;; span += kSpan) {
    const Shape one = shape(span);
    if (one.parts <= 1) continue;
    if (number < span[1]) {
      AttentionItem item{};
      item.row = span[0] + number;
      item.rows = 1;
      item.position = span[2] + number;
      item.tile = first_tile(item.position);
      item.tiles_end = item.position / kTile + 1;
      item.first_tile = one.first_tile;
      item.stride = one.tiles;
      item.partials = partials + number * a_.heads * one.tiles * record_floats(a_.layout.value_dim);
      return item;
    }
    number -= span[1];
    partials += one.records;
  }
}

Range attention_range(const AttentionArgs& a) {
  const AttentionPlan plan(a);
  return {plan.items(), plan.grain()};
}

Range attention_merge_range(const AttentionArgs& a) { return {AttentionPlan(a).merges(), 1}; }

}  // namespace r1
