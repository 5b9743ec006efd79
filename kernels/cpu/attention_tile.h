// Which members of one tile of 64 positions there are, where they lie and which row sees them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace lckv {

inline constexpr int32_t kTilePositions = 64;

// Bits [begin, end) of 64, the bounds cut to them.
inline uint64_t lane_range(int64_t begin, int64_t end) {
  begin = std::clamp<int64_t>(begin, 0, 64);
  end = std::clamp<int64_t>(end, 0, 64);
  if (begin >= end) return 0;
  const uint64_t below_end = end == 64 ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
  return below_end & ~((uint64_t{1} << begin) - 1);
}

// What one row may see: positions [begin, end) and [0, sinks).
struct RowView {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t sinks = 0;

  RowView() = default;
  RowView(const AttentionArgs& args, int32_t position)
      : begin(args.window > 0 ? std::max(0, position - args.window + 1) : 0),
        end(args.strict ? position : position + 1),
        sinks(std::min(args.num_sinks, end)) {}

  // Lanes of the tile whose first position is `base`.
  uint64_t lanes(int32_t base) const {
    return lane_range(begin - base, end - base) | lane_range(0, sinks - base);
  }
};

// Whether a row of the official decode sees the zero key, which stands at position 0.
inline bool sees_zero_key(const AttentionArgs& args, int32_t position) {
  return position > 0 && (args.window == 0 || position < args.window);
}

// Goes through a segment's history tile by tile, in order of position, for one KV head.
class TileWalk {
 public:
  TileWalk(const AttentionArgs& args, const AttentionSegment& segment, int32_t kv_head)
      : args_(args), segment_(segment), kv_head_(kv_head) {}

  // Gathers the next tile that has members at positions below `end`, passing over [sinks, begin).
  bool next(int32_t sinks, int32_t begin, int32_t end) {
    int32_t position = first_position();
    if (position >= sinks && position < begin) {
      slot_ = lower_bound(segment_.slot_positions, slot_, segment_.num_slots, begin);
      staged_ = lower_bound(segment_.staged_positions, staged_, segment_.num_staged, begin);
      position = first_position();
    }
    if (position >= end) return false;
    base = position / kTilePositions * kTilePositions;
    present = 0;
    gather_slots();
    gather_staged();
    return true;
  }

  int32_t base = 0;
  uint64_t present = 0;
  const std::byte* keys[kTilePositions] = {};  // of present lanes
  const std::byte* values[kTilePositions] = {};

 private:
  static constexpr int32_t kNone = INT32_MAX;

  static int32_t lower_bound(const int32_t* positions, int32_t from, int32_t count,
                             int32_t position) {
    return static_cast<int32_t>(std::lower_bound(positions + from, positions + count, position) -
                                positions);
  }

  int32_t first_position() const {
    const int32_t slot = slot_ < segment_.num_slots ? segment_.slot_positions[slot_] : kNone;
    const int32_t staged =
        staged_ < segment_.num_staged ? segment_.staged_positions[staged_] : kNone;
    return std::min(slot, staged);
  }

  void add(int32_t position, const std::byte* key, const std::byte* value) {
    const int32_t lane = position - base;
    present |= uint64_t{1} << lane;
    keys[lane] = key;
    values[lane] = value;
  }

  void gather_slots() {
    const KvLayout& layout = args_.layout;
    const int64_t slots = layout.slots_per_block;
    const int64_t bytes = layout.head_dim * static_cast<int64_t>(dtype_bytes(layout.dtype));
    for (; slot_ < segment_.num_slots; ++slot_) {
      const int32_t position = segment_.slot_positions[slot_];
      if (position - base >= kTilePositions) return;
      const std::byte* const key = layout.base +
                                   segment_.blocks[slot_ / slots] * layout.block_bytes +
                                   (kv_head_ * slots + slot_ % slots) * bytes;
      add(position, key, key + layout.kv_heads * slots * bytes);
    }
  }

  void gather_staged() {
    const KvLayout& layout = args_.layout;
    const int64_t bytes = layout.head_dim * static_cast<int64_t>(dtype_bytes(layout.dtype));
    for (; staged_ < segment_.num_staged; ++staged_) {
      const int32_t position = segment_.staged_positions[staged_];
      if (position - base >= kTilePositions) return;
      const int64_t at =
          (static_cast<int64_t>(segment_.staged_rows[staged_]) * layout.kv_heads + kv_head_) *
          bytes;
      add(position, args_.staged.k + at, args_.staged.v + at);
    }
  }

  const AttentionArgs& args_;
  const AttentionSegment& segment_;
  const int32_t kv_head_;
  int32_t slot_ = 0;
  int32_t staged_ = 0;
};

}  // namespace lckv
