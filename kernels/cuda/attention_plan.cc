#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {
namespace {

// Blocks of threads that a multiprocessor works on at once, with some to spare for uneven ends.
constexpr int64_t kBlocksPerMultiprocessor = 8;

int32_t tiles_up_to(int32_t position) {
  return (std::max(position, 0) + kAttentionTile - 1) / kAttentionTile;
}

// Neighbouring rows of one segment, and what they see together: `seen` by row of the whole call.
AttentionItem group_of(const std::vector<SeenRange>& seen_by_row, int32_t segment,
                       int32_t row_begin, int32_t num_rows) {
  AttentionItem item{.segment = segment, .row_begin = row_begin, .num_rows = num_rows};
  item.any = item.all = seen_by_row[row_begin];
  for (int32_t row = row_begin + 1; row < row_begin + num_rows; ++row) {
    const SeenRange& seen = seen_by_row[row];
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

// Tiles [begin, end); none where end is not behind begin.
struct TileRange {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t count() const { return std::max(end - begin, 0); }
  int32_t num_pieces(int32_t length) const {
    return count() == 0 ? 0 : (end - 1) / length - begin / length + 1;
  }
};

// An item's tiles: those of the sinks, and those from the window's on.
TileRange sink_range(const AttentionItem& item) {
  return {item.first_tile, std::min(item.sink_tiles, item.end_tile)};
}
TileRange window_range(const AttentionItem& item) {
  return {std::max(item.first_tile, item.window_tile), item.end_tile};
}

int32_t num_tiles(const AttentionItem& item) {
  return sink_range(item).count() + window_range(item).count();
}

// As add_pieces() cuts it.
int32_t num_pieces(const AttentionItem& item, int32_t length) {
  const TileRange sinks = sink_range(item);
  const TileRange window = window_range(item);
  const bool share_one =
      sinks.count() > 0 && window.count() > 0 && (sinks.end - 1) / length == window.begin / length;
  return sinks.num_pieces(length) + window.num_pieces(length) - (share_one ? 1 : 0);
}

// Ascending numbers without a gap are as many as they span.
bool are_contiguous(const int32_t* positions, int32_t count) {
  return positions[count - 1] - positions[0] == count - 1;
}

size_t num_runs(const int32_t* positions, int32_t count) {
  if (count == 0) return 0;
  size_t runs = 1;
  if (are_contiguous(positions, count)) return runs;
  for (int32_t i = 1; i < count; ++i) runs += positions[i] == positions[i - 1] + 1 ? 0 : 1;
  return runs;
}

void add_runs(const int32_t* positions, int32_t count, int32_t first_entry, AttentionPlan& plan) {
  if (count == 0) return;
  if (are_contiguous(positions, count)) {
    plan.runs.push_back({.position = positions[0], .entry = first_entry});
    return;
  }
  for (int32_t i = 0; i < count; ++i) {
    if (i > 0 && positions[i] == positions[i - 1] + 1) continue;
    plan.runs.push_back({.position = positions[i], .entry = first_entry + i});
  }
}

size_t num_blocks(const AttentionArgs& args, const AttentionSegment& segment) {
  const int32_t slots = args.layout.slots_per_block;
  return static_cast<size_t>((segment.num_slots + slots - 1) / slots);
}

void add_segment(const AttentionArgs& args, const AttentionSegment& segment, AttentionPlan& plan) {
  SegmentPlan added{.first_block = static_cast<int32_t>(plan.blocks.size()),
                    .num_slots = segment.num_slots,
                    .first_staged = static_cast<int32_t>(plan.staged_rows.size()),
                    .num_entries = segment.num_slots + segment.num_staged,
                    .first_run = static_cast<int32_t>(plan.runs.size())};
  plan.blocks.insert(plan.blocks.end(), segment.blocks, segment.blocks + num_blocks(args, segment));
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
    tile = tile_after(whole, piece.end_tile - 1);
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

// Fills plans with groups of rows, group by group.
class PlanSeries {
 public:
  PlanSeries(const AttentionArgs& args, const AttentionPlanOptions& options)
      : args_(args), options_(options), share_bytes_(share_bytes(args)) {}

  void add_segment_rows(const AttentionSegment& segment, int32_t rows_at_once);
  // Cuts what was added.
  std::vector<AttentionPlan> cut();

 private:
  size_t shares_of(const AttentionItem& group, int32_t length) const {
    const int32_t pieces = num_pieces(group, length);
    return pieces > 1 ? static_cast<size_t>(pieces) * group.num_rows * share_bytes_ : 0;
  }
  // Whether the current plan, which has rows, may have the group's too.
  bool fits(const AttentionItem& group, int32_t length) const;
  void add(AttentionItem group, int32_t length);
  void end_plan();

  const AttentionArgs& args_;
  const AttentionPlanOptions& options_;
  const size_t share_bytes_;
  std::vector<SeenRange> seen_;        // by row
  std::vector<PlanSize> sizes_;        // by segment, without its rows
  std::vector<AttentionItem> groups_;  // rows that are computed together
  std::vector<AttentionPlan> plans_;
  AttentionPlan plan_;         // the current one
  int32_t last_segment_ = -1;  // in it
  int32_t end_row_ = 0;        // of it
};

void PlanSeries::add_segment_rows(const AttentionSegment& segment, int32_t rows_at_once) {
  LCKV_CHECK(segment.row_begin >= 0 && segment.row_begin <= segment.row_end);
  if (seen_.size() < static_cast<size_t>(segment.row_end)) seen_.resize(segment.row_end);
  for (int32_t row = segment.row_begin; row < segment.row_end; ++row) {
    const bool official = args_.official_decode != nullptr && args_.official_decode[row] != 0;
    seen_[row] = seen_range(args_, args_.positions[row], official);
  }
  const auto index = static_cast<int32_t>(sizes_.size());
  sizes_.push_back({.blocks = num_blocks(args_, segment),
                    .staged_rows = static_cast<size_t>(segment.num_staged),
                    .runs = num_runs(segment.slot_positions, segment.num_slots) +
                            num_runs(segment.staged_positions, segment.num_staged),
                    .segments = 1});
  for (int32_t row = segment.row_begin; row < segment.row_end; row += rows_at_once) {
    groups_.push_back(group_of(seen_, index, row, std::min(rows_at_once, segment.row_end - row)));
  }
}

bool PlanSeries::fits(const AttentionItem& group, int32_t length) const {
  if (group.row_begin < end_row_) return false;
  const int32_t pieces = num_pieces(group, length);
  PlanSize size = plan_.size();
  if (group.segment != last_segment_) {
    const PlanSize& segment = sizes_[group.segment];
    size.blocks += segment.blocks;
    size.staged_rows += segment.staged_rows;
    size.runs += segment.runs;
    size.segments += segment.segments;
  }
  size.seen = static_cast<size_t>(group.row_begin + group.num_rows - plan_.first_row);
  size.items += static_cast<size_t>(std::max(pieces, 1));
  size.merges += pieces > 1 ? 1 : 0;
  const size_t shares = plan_.num_partials * share_bytes_ + shares_of(group, length);
  return size.bytes() <= options_.max_upload_bytes && shares <= options_.max_share_bytes;
}

void PlanSeries::add(AttentionItem group, int32_t length) {
  while (shares_of(group, length) > options_.max_share_bytes) {
    // Reproducible cuts stay where they are, so fewer rows are cut together.
    if (!options_.reproducible) {
      length *= 2;
    } else if (group.num_rows == 1) {
      break;
    } else {
      const int32_t half = group.num_rows / 2;
      add(group_of(seen_, group.segment, group.row_begin, half), length);
      group = group_of(seen_, group.segment, group.row_begin + half, group.num_rows - half);
    }
  }
  if (!plan_.items.empty() && !fits(group, length)) end_plan();
  if (plan_.items.empty()) plan_.first_row = group.row_begin;
  if (group.segment != last_segment_) {
    add_segment(args_, args_.segments[group.segment], plan_);
    last_segment_ = group.segment;
  }
  group.segment = static_cast<int32_t>(plan_.segments.size()) - 1;
  end_row_ = group.row_begin + group.num_rows;
  add_pieces(group, length, plan_);
}

void PlanSeries::end_plan() {
  plan_.seen.assign(seen_.begin() + plan_.first_row, seen_.begin() + end_row_);
  plans_.push_back(std::exchange(plan_, {}));
  last_segment_ = -1;
  end_row_ = 0;
}

std::vector<AttentionPlan> PlanSeries::cut() {
  int64_t total_tiles = 0;
  for (const AttentionItem& group : groups_) total_tiles += num_tiles(group);
  const int32_t chunks = query_shape(args_).chunks;
  const int32_t length = split_tiles(total_tiles * args_.layout.kv_heads * chunks, options_);
  for (const AttentionItem& group : groups_) add(group, length);
  if (!plan_.items.empty()) end_plan();
  return std::move(plans_);
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

size_t share_bytes(const AttentionArgs& args) {
  const QueryShape shape = query_shape(args);
  const auto heads = static_cast<size_t>(args.layout.kv_heads) * shape.chunks * shape.heads;
  return heads * (args.layout.head_dim + 2) * sizeof(float);
}

std::vector<AttentionPlan> plan_attention(const AttentionArgs& args,
                                          const AttentionPlanOptions& options) {
  PlanSeries series(args, options);
  const int32_t rows_at_once = query_shape(args).rows;
  for (const AttentionSegment& segment : args.segments) {
    series.add_segment_rows(segment, rows_at_once);
  }
  return series.cut();
}

}  // namespace lckv
