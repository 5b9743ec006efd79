// AttentionPlan: the host's half of attention: cuts rows and histories into the work of blocks and
// lays everything out for one upload.
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
};

struct AttentionPlan {
  std::vector<int32_t> blocks;
  std::vector<int32_t> staged_rows;
  std::vector<HistoryRun> runs;
  std::vector<SegmentPlan> segments;
  std::vector<SeenRange> seen;  // by row
  std::vector<AttentionItem> items;
  std::vector<MergeItem> merges;
  int32_t num_partials = 0;  // shares of rows
};

// Tiles of a piece of a split history, in reproducible mode.
inline constexpr int32_t kReproducibleSplitTiles = 16;
// No shorter pieces pay for being merged.
inline constexpr int32_t kSplitTilesMin = 4;

// Tiles per piece where `total_tiles`, counted once for every block that reads them, are to keep
// the device busy.
int32_t split_tiles(int64_t total_tiles, const AttentionPlanOptions& options);

QueryShape query_shape(const AttentionArgs& args);

AttentionPlan plan_attention(const AttentionArgs& args, const AttentionPlanOptions& options);

}  // namespace lckv
