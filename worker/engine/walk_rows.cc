#include "worker/engine/walk_rows.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
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
                   const DeviceKv& kv, Collectives& ranks)
    : passes_(passes), ops_(ops), kv_(kv), ranks_(ranks), counts_heads_(options.counts_kv_heads) {
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

absl::StatusOr<std::vector<int32_t>> WalkRows::end(int32_t group, const GroupRows& rows,
                                                   std::span<const int32_t> staging) {
  if (absl::Status status = compare(group, rows, staging); !status.ok()) return status;
  const std::vector<int32_t> num_settled = count_settled(rows);
  commit(group, rows, staging, num_settled);
  promote(group, rows, staging, num_settled);
  return num_settled;
}

absl::Status WalkRows::compare(int32_t group, const GroupRows& rows,
                               std::span<const int32_t> staging) {
  ids_.clear();
  tolerances_.clear();
  for (const WalkSegment& segment : rows.segments) {
    add_ids(segment, staging, 0, num_deciding(segment));
    tolerances_.insert(tolerances_.end(), num_deciding(segment), segment.tolerance);
  }
  came_out_.assign(ids_.size(), 1);
  if (ids_.empty()) return absl::OkStatus();
  // Comparing answers the host, which would wait for a peer unseen.
  if (absl::Status status = ranks_.wait(); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("waiting for ranks before comparing KV: ", status.message()));
  }
  const std::vector<UnitId>& units = passes_.groups[group].units_read_upward;
  distances_.resize(units.size() * ids_.size());
  for (size_t u = 0; u < units.size(); ++u) {
    ops_.compare_kv(kv_.layout(units[u]), ids_, kv_.fresh(units[u]), kv_.read(units[u]),
                    distances_.data() + u * ids_.size());
  }
  if (ranks_.size() > 1) {
    if (absl::Status status = add_ranks(); !status.ok()) return status;
  }
  for (size_t i = 0; i < distances_.size(); ++i) {
    const size_t row = i % ids_.size();
    came_out_[row] = came_out_[row] && came_out_as_read(distances_[i], tolerances_[row]);
  }
  return absl::OkStatus();
}

absl::Status WalkRows::add_ranks() {
  sums_.clear();
  for (const KvDistance& distance : distances_) {
    sums_.push_back(counts_heads_ ? distance.difference_squared : 0.0F);
    sums_.push_back(counts_heads_ ? distance.norm_squared : 0.0F);
    sums_.push_back(distance.identical ? 0.0F : 1.0F);
  }
  absl::Status status = ranks_.all_reduce(sums_.data(), static_cast<int64_t>(sums_.size()));
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("all_reduce of KV distances: ", status.message()));
  }
  for (size_t i = 0; i < distances_.size(); ++i) {
    distances_[i] = {.difference_squared = sums_[3 * i],
                     .norm_squared = sums_[3 * i + 1],
                     .identical = sums_[3 * i + 2] == 0.0F};
  }
  return absl::OkStatus();
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
