#include "worker/engine/walk_rows.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace lckv {
namespace {

// Rows after which another row may be settled or not.
int32_t num_deciding(const WalkSegment& segment) {
  return segment.end == WalkEnd::kSettle ? segment.num_rows - 1 : 0;
}

bool came_out_as_read(const KvDistance& distance, float tolerance) {
  if (tolerance <= 0.0F) return distance.identical;
  return std::sqrt(distance.difference_squared) <= tolerance * std::sqrt(distance.norm_squared);
}

}  // namespace

WalkRows::WalkRows(const RunnerOptions& options, const PassPlan& passes, Ops& ops,
                   const DeviceKv& kv)
    : passes_(passes), ops_(ops), kv_(kv) {
  const int32_t rows = std::max(options.max_batched_rows, options.staging_rows);
  ids_.reserve(rows);
  tolerances_.reserve(rows);
  distances_.reserve(rows);
  came_out_.reserve(rows);
  slots_.blocks.reserve(rows);
  slots_.slots.reserve(rows);
}

void WalkRows::add_ids(const WalkSegment& segment, std::span<const int32_t> staging, int32_t first,
                       int32_t count) {
  const int32_t offset = segment.first_position - segment.staged_position + first;
  LCKV_CHECK(offset >= 0 && offset + count <= segment.staged.count);
  const int32_t* const begin = staging.data() + segment.staged.begin + offset;
  ids_.insert(ids_.end(), begin, begin + count);
}

void WalkRows::clear_new(int32_t group, const GroupRows& rows, std::span<const int32_t> staging) {
  ids_.clear();
  for (const WalkSegment& segment : rows.segments) {
    if (segment.warm || segment.num_new == 0) continue;
    add_ids(segment, staging, segment.num_rows - segment.num_new, segment.num_new);
  }
  if (ids_.empty()) return;
  for (const UnitId unit : passes_.groups[group].units_read_upward) {
    ops_.zero_kv(kv_.layout(unit), ids_, kv_.read(unit));
  }
}

std::vector<int32_t> WalkRows::end(int32_t group, const GroupRows& rows,
                                   std::span<const int32_t> staging) {
  compare(group, rows, staging);
  const std::vector<int32_t> num_settled = count_settled(rows);
  commit(group, rows, staging, num_settled);
  promote(group, rows, staging, num_settled);
  return num_settled;
}

void WalkRows::compare(int32_t group, const GroupRows& rows, std::span<const int32_t> staging) {
  ids_.clear();
  tolerances_.clear();
  for (const WalkSegment& segment : rows.segments) {
    add_ids(segment, staging, 0, num_deciding(segment));
    tolerances_.insert(tolerances_.end(), num_deciding(segment), segment.tolerance);
  }
  came_out_.assign(ids_.size(), 1);
  distances_.resize(ids_.size());
  if (ids_.empty()) return;
  for (const UnitId unit : passes_.groups[group].units_read_upward) {
    ops_.compare_kv(kv_.layout(unit), ids_, kv_.fresh(unit), kv_.read(unit), distances_.data());
    for (size_t i = 0; i < ids_.size(); ++i) {
      came_out_[i] = came_out_[i] && came_out_as_read(distances_[i], tolerances_[i]);
    }
  }
}

std::vector<int32_t> WalkRows::count_settled(const GroupRows& rows) const {
  std::vector<int32_t> num_settled;
  num_settled.reserve(rows.segments.size());
  auto came_out = came_out_.begin();
  for (const WalkSegment& segment : rows.segments) {
    const auto end = came_out + num_deciding(segment);
    switch (segment.end) {
      case WalkEnd::kSettle:
        num_settled.push_back(1 + static_cast<int32_t>(std::find(came_out, end, 0) - came_out));
        break;
      case WalkEnd::kCommit:
        num_settled.push_back(segment.num_rows);
        break;
      case WalkEnd::kPass:
      case WalkEnd::kPassEnd:
        num_settled.push_back(0);
        break;
    }
    came_out = end;
  }
  return num_settled;
}

void WalkRows::commit(int32_t group, const GroupRows& rows, std::span<const int32_t> staging,
                      const std::vector<int32_t>& num_settled) {
  ids_.clear();
  for (size_t i = 0; i < rows.segments.size(); ++i) {
    add_ids(rows.segments[i], staging, 0, num_settled[i]);
  }
  if (ids_.empty()) return;
  for (const UnitId unit : passes_.groups[group].units) {
    slots_.blocks.clear();
    slots_.slots.clear();
    for (size_t i = 0; i < rows.segments.size(); ++i) {
      if (num_settled[i] == 0) continue;
      const WalkSegment& segment = rows.segments[i];
      kv_.locate({segment.seat, segment.first_position, num_settled[i]}, unit, slots_);
    }
    ops_.commit_kv(kv_.fresh(unit), ids_, kv_.layout(unit), slots_.blocks, slots_.slots);
  }
}

void WalkRows::promote(int32_t group, const GroupRows& rows, std::span<const int32_t> staging,
                       const std::vector<int32_t>& num_settled) {
  ids_.clear();
  for (size_t i = 0; i < rows.segments.size(); ++i) {
    const WalkSegment& segment = rows.segments[i];
    if (segment.end == WalkEnd::kSettle) {
      add_ids(segment, staging, num_settled[i], segment.num_rows - num_settled[i]);
    } else if (segment.end == WalkEnd::kPassEnd) {
      const int32_t* const begin = staging.data() + segment.staged.begin;
      ids_.insert(ids_.end(), begin, begin + segment.staged.count);
    }
  }
  if (ids_.empty()) return;
  for (const UnitId unit : passes_.groups[group].units_read_upward) {
    ops_.copy_kv(kv_.layout(unit), ids_, kv_.fresh(unit), kv_.read(unit));
  }
}

}  // namespace lckv
