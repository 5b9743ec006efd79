// AttentionPlan: the host's half of attention: cuts rows and histories into the work of blocks and
// lays everything out for uploads. A call of many rows is several plans, each of which keeps within
// the memory there is for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda/attention_index.h"
#include "kernels/ops.h"

namespace lckv {

struct AttentionPlanOptions {
  int32_t num_multiprocessors = 1;
  // Histories are cut at fixed positions, so that a row's sums do not depend on what else runs.
  bool reproducible = false;
  // Of one plan: its arrays, and the shares of its split histories.
  size_t max_upload_bytes = SIZE_MAX;
  size_t max_share_bytes = SIZE_MAX;
};

// Arrays on the device begin at multiples of this.
inline constexpr size_t kArrayAlignment = 16;
template <class Value>
constexpr size_t array_bytes(size_t count) {
  return (count * sizeof(Value) + kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
}

// How much of everything that is uploaded a plan has.
struct PlanSize {
  size_t blocks = 0;
  size_t staged_rows = 0;
  size_t runs = 0;
  size_t segments = 0;
  size_t seen = 0;
  size_t items = 0;
  size_t merges = 0;

  // Of all arrays, one after the other.
  size_t bytes() const {
    return array_bytes<int32_t>(blocks) + array_bytes<int32_t>(staged_rows) +
           array_bytes<HistoryRun>(runs) + array_bytes<SegmentPlan>(segments) +
           array_bytes<SeenRange>(seen) + array_bytes<AttentionItem>(items) +
           array_bytes<MergeItem>(merges);
  }
};

// The work of neighbouring rows, one launch.
struct AttentionPlan {
  std::vector<int32_t> blocks;
  std::vector<int32_t> staged_rows;
  std::vector<HistoryRun> runs;
  std::vector<SegmentPlan> segments;
  int32_t first_row = 0;
  std::vector<SeenRange> seen;  // by row, from first_row on
  std::vector<AttentionItem> items;
  std::vector<MergeItem> merges;
  int32_t num_partials = 0;  // shares of rows

  PlanSize size() const {
    return {blocks.size(), staged_rows.size(), runs.size(),  segments.size(),
            seen.size(),   items.size(),       merges.size()};
  }
  size_t upload_bytes() const { return size().bytes(); }
};

// Tiles of a piece of a split history, in reproducible mode.
inline constexpr int32_t kReproducibleSplitTiles = 16;
// No shorter pieces pay for being merged.
inline constexpr int32_t kSplitTilesMin = 4;

// Tiles per piece where `total_tiles`, counted once for every block that reads them, are to keep
// the device busy.
int32_t split_tiles(int64_t total_tiles, const AttentionPlanOptions& options);

QueryShape query_shape(const AttentionArgs& args);

// Of a row's share of a split history, over all heads: sums, tops and norms.
size_t share_bytes(const AttentionArgs& args);

// In the order of the segments' rows; together they write every row once. A row alone whose segment
// or, in reproducible mode, whose shares exceed a limit has a plan that does.
std::vector<AttentionPlan> plan_attention(const AttentionArgs& args,
                                          const AttentionPlanOptions& options);

}  // namespace lckv
