// What a row may see, and where it lies: the part of attention that is index arithmetic. Constexpr:
// the device's and the host's.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/ops.h"

namespace lckv {

// Positions that are reduced together, from position 0 upward (see AttentionArgs).
inline constexpr int32_t kAttentionTile = 64;

// Head sizes that kernels are compiled for (with_head_dim in attention_launch.cuh).
inline constexpr std::array<int32_t, 8> kAttentionHeadDims = {16, 32, 48, 64, 80, 96, 128, 256};

// What one row sees: positions [begin, end) and [0, sinks).
struct SeenRange {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t sinks = 0;
  // The row of an official decode (AttentionArgs::official_decode) sees the zero key.
  int32_t zero_key = 0;
};

constexpr SeenRange seen_range(const AttentionArgs& args, int32_t position, bool official) {
  // Keys that count as one position newer: the row sees what the one before it would.
  const int32_t seen_from = official ? position - 1 : position;
  SeenRange range;
  range.end = args.strict ? seen_from : seen_from + 1;
  if (args.window > 0 && seen_from - args.window + 1 > 0) {
    range.begin = seen_from - args.window + 1;
    range.sinks = args.num_sinks < range.end ? args.num_sinks : range.end;
  }
  range.zero_key = official && position > 0 && (args.window == 0 || position < args.window) ? 1 : 0;
  return range;
}

// Mask policies of the kernel: the plain one spares every score two comparisons.
struct CausalMask {
  static constexpr bool sees(const SeenRange& range, int32_t position) {
    return position < range.end;
  }
};
struct WindowMask {
  static constexpr bool sees(const SeenRange& range, int32_t position) {
    return position < range.end && (position >= range.begin || position < range.sinks);
  }
};

// A segment's history is its slots and then its staged rows, as one list of entries. Positions
// mostly follow each other without gaps, so they are told as runs: entries from `entry` on, up to
// the next run's, have consecutive positions from `position` on.
struct HistoryRun {
  int32_t position = 0;
  int32_t entry = 0;
};

// Which of `num_entries` entries has the position; -1: none.
constexpr int32_t entry_at(const HistoryRun* runs, int32_t num_runs, int32_t num_entries,
                           int32_t position) {
  int32_t low = 0;
  int32_t high = num_runs;  // the first run that begins behind the position
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (runs[middle].position <= position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (high == 0) return -1;
  const HistoryRun& run = runs[high - 1];
  const int32_t entry = run.entry + (position - run.position);
  const int32_t end = high < num_runs ? runs[high].entry : num_entries;
  return entry < end ? entry : -1;
}

// A segment on the device: where its parts begin in the plan's arrays.
struct SegmentPlan {
  int32_t first_block = 0;
  int32_t num_slots = 0;
  int32_t first_staged = 0;
  int32_t num_entries = 0;
  int32_t first_run = 0;
  int32_t num_runs = 0;
};

// What one block of threads does for every KV head: neighbouring rows of a segment against tiles
// [first_tile, end_tile), of which those from `sink_tiles` up to `window_tile` are passed over.
struct AttentionItem {
  int32_t segment = 0;
  int32_t row_begin = 0;
  int32_t num_rows = 0;
  int32_t first_tile = 0;
  int32_t end_tile = 0;
  int32_t sink_tiles = 0;
  int32_t window_tile = 0;
  int32_t partial = -1;  // its first row's share of a split history; -1: it is all of it
  // What no row sees lies outside `any`; what lies inside `all`, every row sees.
  SeenRange any;
  SeenRange all;
};

constexpr int32_t tile_after(const AttentionItem& item, int32_t tile) {
  const int32_t next = tile + 1;
  return next >= item.sink_tiles && next < item.window_tile ? item.window_tile : next;
}
constexpr int32_t first_tile_of(const AttentionItem& item) {
  return tile_after(item, item.first_tile - 1);
}

// Rows whose history was split into `num_pieces`: the shares of a piece's rows follow each other,
// and so do the pieces, from `first_partial` on.
struct MergeItem {
  int32_t row_begin = 0;
  int32_t num_rows = 0;
  int32_t first_partial = 0;
  int32_t num_pieces = 0;
};

// Queries that one block computes: the scalar kernel, and four warps with a tensor core's rows
// each.
inline constexpr int32_t kScalarQueries = 8;
inline constexpr int32_t kTensorQueries = 64;
constexpr int32_t block_queries(DType kv) {
  return kv == DType::kFloat32 ? kScalarQueries : kTensorQueries;
}

// How the query heads of a KV head are shared out: a block computes up to `queries` of them, of
// several rows where the heads are fewer, and the heads are cut where they are more.
struct QueryShape {
  int32_t heads_per_kv = 1;
  int32_t heads = 1;   // of a row in one block
  int32_t chunks = 1;  // blocks that share a row's heads
  int32_t rows = 1;    // in one block

  constexpr QueryShape(int32_t num_heads, int32_t kv_heads, int32_t queries)
      : heads_per_kv(num_heads / kv_heads),
        heads(heads_per_kv < queries ? heads_per_kv : queries),
        chunks((heads_per_kv + heads - 1) / heads),
        rows(queries / heads) {}
  constexpr int32_t row_of(int32_t query) const { return query / heads; }
  // Of a KV head's query heads; some may lie behind the last.
  constexpr int32_t head_of(int32_t query, int32_t chunk) const {
    return chunk * heads + query % heads;
  }
};

// Where chunk `chunk` (16 bytes) of row `row` lies in shared memory, in chunks, where a row has
// `chunks`. Eight rows from a multiple of 8 on have the same chunk in all 32 banks between them:
// what ldmatrix reads at once. Rows that are no multiple of all banks apart collide the less for
// it, and need the less exchanged.
constexpr uint32_t swizzled_chunk(uint32_t chunks, uint32_t row, uint32_t chunk) {
  const uint32_t even = chunks & -chunks;  // the largest power of two that divides it
  const uint32_t exchanged = even < 8 ? even : 8;
  return row * chunks + chunk / 8 * 8 + (chunk % 8 ^ (row / (8 / exchanged) % exchanged));
}

}  // namespace lckv
