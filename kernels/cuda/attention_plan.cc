#include "kernels/cuda/attention_plan.h"

#include <algorithm>

#include "kernels/check.h"

namespace lckv {
namespace {

// Blocks of threads that a multiprocessor works on at once, with some to spare for uneven ends.
constexpr int64_t kBlocksPerMultiprocessor = 8;

int32_t tiles_up_to(int32_t position) {
  return (std::max(position, 0) + kAttentionTile - 1) / kAttentionTile;
}

// Neighbouring rows of one segment, and what they see together.
AttentionItem group_of(const AttentionPlan& plan, int32_t segment, int32_t row_begin,
                       int32_t num_rows) {
  AttentionItem item{.segment = segment, .row_begin = row_begin, .num_rows = num_rows};
  item.any = item.all = plan.seen[row_begin];
  for (int32_t row = row_begin + 1; row < row_begin + num_rows; ++row) {
    const SeenRange& seen = plan.seen[row];
    item.any.begin = std::min(item.any.begin, seen.begin);
    item.any.end = std::max(item.any.end, seen.end);
    item.any.sinks = std::max(item.any.sinks, seen.sinks);
    item.all.begin = std::max(item.all.begin, seen.begin);
    item.all.end = std::min(item.all.end, seen.end);
    item.all.sinks = std::min(item.all.sinks, seen.sinks);
  }
  item.end_tile = tiles_up_to(item.any.end);
  item.sink_tiles = tiles_up_to(item.any.sinks);
  item.window_tile = std::max(item.any.begin / kAttentionTile, item.sink_tiles);
  item.first_tile = std::min(first_tile_of(item), item.end_tile);
  return item;
}

int32_t num_tiles(const AttentionItem& item) {
  int32_t count = 0;
  for (int32_t tile = first_tile_of(item); tile < item.end_tile; tile = tile_after(item, tile)) {
    ++count;
  }
  return count;
}

void add_runs(const int32_t* positions, int32_t count, int32_t first_entry, AttentionPlan& plan) {
  if (count == 0) return;
  // Ascending numbers without a gap are as many as they span.
  if (positions[count - 1] - positions[0] == count - 1) {
    plan.runs.push_back({.position = positions[0], .entry = first_entry});
    return;
  }
  for (int32_t i = 0; i < count; ++i) {
    if (i > 0 && positions[i] == positions[i - 1] + 1) continue;
    plan.runs.push_back({.position = positions[i], .entry = first_entry + i});
  }
}

void add_segment(const AttentionArgs& args, const AttentionSegment& segment, AttentionPlan& plan) {
  SegmentPlan added{.first_block = static_cast<int32_t>(plan.blocks.size()),
                    .num_slots = segment.num_slots,
                    .first_staged = static_cast<int32_t>(plan.staged_rows.size()),
                    .num_entries = segment.num_slots + segment.num_staged,
                    .first_run = static_cast<int32_t>(plan.runs.size())};
  const int32_t slots = args.layout.slots_per_block;
  if (segment.num_slots > 0) {
    plan.blocks.insert(plan.blocks.end(), segment.blocks,
                       segment.blocks + (segment.num_slots + slots - 1) / slots);
  }
  plan.staged_rows.insert(plan.staged_rows.end(), segment.staged_rows,
                          segment.staged_rows + segment.num_staged);
  add_runs(segment.slot_positions, segment.num_slots, 0, plan);
  add_runs(segment.staged_positions, segment.num_staged, segment.num_slots, plan);
  added.num_runs = static_cast<int32_t>(plan.runs.size()) - added.first_run;
  plan.segments.push_back(added);
}

// Cuts at multiples of `length` tiles from position 0 on.
void add_pieces(const AttentionItem& whole, int32_t length, AttentionPlan& plan) {
  MergeItem merge{
      .row_begin = whole.row_begin, .num_rows = whole.num_rows, .first_partial = plan.num_partials};
  const size_t first = plan.items.size();
  for (int32_t tile = first_tile_of(whole); tile < whole.end_tile;) {
    AttentionItem piece = whole;
    piece.first_tile = tile;
    piece.end_tile = std::min(whole.end_tile, (tile / length + 1) * length);
    plan.items.push_back(piece);
    while (tile < piece.end_tile) tile = tile_after(whole, tile);
  }
  const size_t count = plan.items.size() - first;
  if (count == 0) plan.items.push_back(whole);  // nothing to see: zeros are written all the same
  if (count <= 1) return;
  for (size_t i = first; i < plan.items.size(); ++i) {
    plan.items[i].partial = plan.num_partials;
    plan.num_partials += whole.num_rows;
  }
  merge.num_pieces = static_cast<int32_t>(count);
  plan.merges.push_back(merge);
}

}  // namespace

int32_t split_tiles(int64_t total_tiles, const AttentionPlanOptions& options) {
  if (options.reproducible) return kReproducibleSplitTiles;
  const int64_t at_once = options.num_multiprocessors * kBlocksPerMultiprocessor;
  const int64_t even = (total_tiles + at_once - 1) / at_once;
  return static_cast<int32_t>(std::clamp<int64_t>(even, kSplitTilesMin, INT32_MAX / 2));
}

QueryShape query_shape(const AttentionArgs& args) {
  return {args.num_heads, args.layout.kv_heads, block_queries(args.layout.dtype)};
}

AttentionPlan plan_attention(const AttentionArgs& args, const AttentionPlanOptions& options) {
  const QueryShape shape = query_shape(args);
  AttentionPlan plan;
  std::vector<AttentionItem> groups;
  int64_t total_tiles = 0;
  for (const AttentionSegment& segment : args.segments) {
    LCKV_CHECK(segment.row_begin >= 0 && segment.row_begin <= segment.row_end);
    if (plan.seen.size() < static_cast<size_t>(segment.row_end)) plan.seen.resize(segment.row_end);
    for (int32_t row = segment.row_begin; row < segment.row_end; ++row) {
      const bool official = args.official_decode != nullptr && args.official_decode[row] != 0;
      plan.seen[row] = seen_range(args, args.positions[row], official);
    }
    add_segment(args, segment, plan);
    const auto index = static_cast<int32_t>(plan.segments.size()) - 1;
    for (int32_t row = segment.row_begin; row < segment.row_end; row += shape.rows) {
      groups.push_back(group_of(plan, index, row, std::min(shape.rows, segment.row_end - row)));
      total_tiles += num_tiles(groups.back());
    }
  }
  const int32_t length = split_tiles(total_tiles * args.layout.kv_heads * shape.chunks, options);
  for (const AttentionItem& group : groups) add_pieces(group, length, plan);
  return plan;
}

}  // namespace lckv
