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

// Rows that may be settled.
int32_t num_committed(const WalkSegment& segment) {
  const bool passes = segment.end == WalkEnd::kPass || segment.end == WalkEnd::kPassEnd;
  return passes ? 0 : segment.num_rows;
}

bool came_out_as_read(const KvDistance& distance, float tolerance) {
  if (tolerance <= 0.0F) return distance.differs == 0.0F;
  return std::sqrt(distance.difference_squared) <= tolerance * std::sqrt(distance.norm_squared);
}

// Of the ranks that hold the same KV heads the first gives distances, the others zeros.
std::unique_ptr<DeviceBuffer> zeros_to_give(const RunnerOptions& options, const PassPlan& passes,
                                            Ops& ops) {
  size_t num_units = 0;
  for (const CyclicGroup& group : passes.groups) {
    num_units = std::max(num_units, group.units_read_upward.size());
  }
  if (options.counts_kv_heads || num_units == 0) return nullptr;
  const std::vector<KvDistance> zeros(num_units * options.max_batched_rows);
  auto buffer = ops.allocate(zeros.size() * sizeof(KvDistance));
  ops.copy(reinterpret_cast<const std::byte*>(zeros.data()), buffer->data(), buffer->bytes());
  return buffer;
}

}  // namespace

WalkRows::WalkRows(const RunnerOptions& options, const PassPlan& passes, Ops& ops,
                   const DeviceKv& kv, Collectives& ranks)
    : passes_(passes),
      ops_(ops),
      kv_(kv),
      ranks_(ranks),
      max_rows_(options.max_batched_rows),
      zeros_(zeros_to_give(options, passes, ops)) {
  const int32_t rows = std::max(options.max_batched_rows, options.staging_rows);
  ids_.reserve(rows);
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

absl::StatusOr<ResultSpan<KvDistance>> WalkRows::end(int32_t group, const GroupRows& rows,
                                                     std::span<const int32_t> staging,
                                                     StepResults& results) {
  auto distances = compare(group, rows, staging, results);
  if (!distances.ok()) return distances.status();
  commit(group, rows, staging);
  promote(group, rows, staging);
  return distances;
}

size_t WalkRows::max_result_bytes(int32_t group) const {
  return StepResults::bytes_of<KvDistance>(passes_.groups[group].units_read_upward.size() *
                                           max_rows_);
}

absl::StatusOr<ResultSpan<KvDistance>> WalkRows::compare(int32_t group, const GroupRows& rows,
                                                         std::span<const int32_t> staging,
                                                         StepResults& results) {
  ids_.clear();
  for (const WalkSegment& segment : rows.segments) {
    add_ids(segment, staging, 0, num_deciding(segment));
  }
  const std::vector<UnitId>& units = passes_.groups[group].units_read_upward;
  const auto distances = results.take<KvDistance>(units.size() * ids_.size());
  if (distances.host.empty()) return distances;
  if (zeros_ != nullptr) {
    ops_.copy(zeros_->data(), reinterpret_cast<std::byte*>(distances.device),
              distances.host.size_bytes());
  }
  for (size_t u = 0; zeros_ == nullptr && u < units.size(); ++u) {
    ops_.compare_kv(kv_.layout(units[u]), ids_, kv_.fresh(units[u]), kv_.read(units[u]),
                    distances.device + u * ids_.size());
  }
  if (absl::Status status = add_ranks(distances); !status.ok()) return status;
  return distances;
}

absl::Status WalkRows::add_ranks(const ResultSpan<KvDistance>& distances) {
  if (ranks_.size() == 1) return absl::OkStatus();
  absl::Status status =
      ranks_.all_reduce(reinterpret_cast<float*>(distances.device),
                        static_cast<int64_t>(distances.host.size_bytes() / sizeof(float)));
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("all_reduce of KV distances: ", status.message()));
}

std::vector<int32_t> WalkRows::count_settled(const GroupRows& rows,
                                             std::span<const KvDistance> distances) {
  size_t num_rows = 0;  // of each unit's distances
  for (const WalkSegment& segment : rows.segments) num_rows += num_deciding(segment);
  std::vector<int32_t> num_settled;
  num_settled.reserve(rows.segments.size());
  size_t row = 0;
  for (const WalkSegment& segment : rows.segments) {
    const size_t end = row + num_deciding(segment);
    const auto is_as_read = [&](size_t at) {
      for (; at < distances.size(); at += num_rows) {
        if (!came_out_as_read(distances[at], segment.tolerance)) return false;
      }
      return true;
    };
    int32_t count = std::min(num_committed(segment), 1);
    for (size_t at = row; at < end && is_as_read(at); ++at) ++count;
    num_settled.push_back(segment.end == WalkEnd::kCommit ? segment.num_rows : count);
    row = end;
  }
  return num_settled;
}

void WalkRows::commit(int32_t group, const GroupRows& rows, std::span<const int32_t> staging) {
  ids_.clear();
  for (const WalkSegment& segment : rows.segments) {
    add_ids(segment, staging, 0, num_committed(segment));
  }
  if (ids_.empty()) return;
  for (const UnitId unit : passes_.groups[group].units) {
    slots_.blocks.clear();
    slots_.slots.clear();
    for (const WalkSegment& segment : rows.segments) {
      if (num_committed(segment) == 0) continue;
      kv_.locate({segment.seat, segment.first_position, segment.num_rows}, unit, slots_);
    }
    ops_.commit_kv(kv_.fresh(unit), ids_, kv_.layout(unit), slots_.blocks, slots_.slots);
  }
}

void WalkRows::promote(int32_t group, const GroupRows& rows, std::span<const int32_t> staging) {
  ids_.clear();
  for (const WalkSegment& segment : rows.segments) {
    if (segment.end == WalkEnd::kSettle) {
      add_ids(segment, staging, 1, segment.num_rows - 1);
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
