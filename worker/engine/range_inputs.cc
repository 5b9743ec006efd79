#include "worker/engine/range_inputs.h"

#include <algorithm>
#include <numeric>

#include "kernels/check.h"

namespace lckv {

RangeInputs::RangeInputs(const RunnerOptions& options, const PassPlan& passes, const DeviceKv& kv,
                         const Ops& ops)
    : passes_(passes),
      kv_(kv),
      ops_(ops),
      max_rows_(options.max_batched_rows),
      ranges_(2 * passes.num_groups() + 1) {
  for (int32_t u = 0; u < passes.num_units(); ++u) {
    ranges_[passes.units[u].range].owned.push_back(u);
    for (const UnitReader& reader : passes.units[u].readers) {
      ranges_[reader.range].read.push_back(u);
    }
  }
  ascending_.resize(options.max_context + 1);
  std::iota(ascending_.begin(), ascending_.end(), 0);
  positions_.reserve(options.max_batched_rows);
  staged_rows_.reserve(options.max_batched_rows);
  official_decode_.reserve(options.max_batched_rows);
  units_.resize(passes.num_units());
  for (Unit& unit : units_) {
    unit.segments.reserve(options.max_batched_rows);
    unit.slots.blocks.reserve(options.max_batched_rows);
    unit.slots.slots.reserve(options.max_batched_rows);
  }
  unit_rows_.resize(passes.num_units());
  for (int32_t u = 0; u < passes.num_units(); ++u) {
    const UnitId unit{u};
    unit_rows_[u] = {.layout = kv.layout(unit), .fresh = kv.fresh(unit), .read = kv.read(unit)};
  }
}

void RangeInputs::clear(int32_t range) {
  positions_.clear();
  staged_rows_.clear();
  official_decode_.clear();
  for (UnitRows& unit : unit_rows_) unit.segments = {};
  for (const int32_t u : ranges_[range].read) units_[u].segments.clear();
  for (const int32_t u : ranges_[range].owned) {
    units_[u].slots.blocks.clear();
    units_[u].slots.slots.clear();
  }
}

AttentionSegment RangeInputs::slots_below(int32_t end, SeatId seat, UnitId unit) const {
  const int32_t first = kv_.first_slot_position(seat, unit);
  const auto blocks = kv_.blocks(seat, unit);
  const int32_t num_slots = std::max(0, end - first);
  LCKV_CHECK(num_slots <= static_cast<int64_t>(blocks.size()) * kv_.layout(unit).slots_per_block);
  return {.blocks = blocks.data(),
          .slot_positions = &ascending_[std::min<size_t>(first, ascending_.size() - 1)],
          .num_slots = num_slots};
}

void RangeInputs::pad(int32_t range) {
  const auto count = static_cast<int32_t>(positions_.size());
  LCKV_CHECK(count <= max_rows_);
  const int32_t rows = std::min(ops_.padded_rows(count), max_rows_);
  positions_.resize(rows, 0);
  if (!staged_rows_.empty()) staged_rows_.resize(rows, -1);
  if (!official_decode_.empty()) official_decode_.resize(rows, 0);
  for (const int32_t u : ranges_[range].owned) {
    if (units_[u].slots.blocks.empty()) continue;
    units_[u].slots.blocks.resize(rows, -1);
    units_[u].slots.slots.resize(rows, 0);
  }
  if (!ops_.repeats_batches(rows)) return;
  for (const int32_t u : ranges_[range].read) units_[u].segments.resize(rows);
}

RangeBatch RangeInputs::finish(int32_t range, float* hidden) {
  for (const int32_t u : ranges_[range].read) unit_rows_[u].segments = units_[u].segments;
  for (const int32_t u : ranges_[range].owned) {
    unit_rows_[u].blocks = units_[u].slots.blocks;
    unit_rows_[u].slots = units_[u].slots.slots;
  }
  return {.range = range,
          .positions = positions_,
          .hidden = hidden,
          .units = unit_rows_,
          .staged_rows = staged_rows_};
}

RangeBatch RangeInputs::ordinary(int32_t index, const RangeRows& rows, float* hidden) {
  const int32_t range = 2 * index;
  clear(range);
  for (const OrdinarySegment& segment : rows.segments) {
    const auto begin = static_cast<int32_t>(positions_.size());
    const int32_t end = segment.first_position + segment.num_rows;
    add_positions(segment.first_position, segment.num_rows);
    for (const int32_t u : ranges_[range].owned) {
      kv_.locate({segment.seat, segment.first_position, segment.num_rows}, UnitId{u},
                 units_[u].slots);
    }
    for (const int32_t u : ranges_[range].read) {
      AttentionSegment read = slots_below(end, segment.seat, UnitId{u});
      read.row_begin = begin;
      read.row_end = begin + segment.num_rows;
      units_[u].segments.push_back(read);
    }
  }
  LCKV_CHECK(static_cast<int32_t>(positions_.size()) == rows.num_rows);
  pad(range);
  return finish(range, hidden);
}

RangeBatch RangeInputs::walk(int32_t group, const GroupRows& rows, std::span<const int32_t> staging,
                             float* hidden) {
  const int32_t range = 2 * group + 1;
  clear(range);
  bool any_official = false;
  for (const WalkSegment& segment : rows.segments) {
    const auto begin = static_cast<int32_t>(positions_.size());
    const int32_t end = segment.first_position + segment.num_rows;
    const int32_t num_staged = end - segment.staged_position;
    LCKV_CHECK(segment.staged_position <= segment.first_position);
    LCKV_CHECK(num_staged <= segment.staged.count);
    const int32_t* const staged = &staging[segment.staged.begin];
    add_positions(segment.first_position, segment.num_rows);
    staged_rows_.insert(staged_rows_.end(), staged + num_staged - segment.num_rows,
                        staged + num_staged);
    official_decode_.insert(official_decode_.end(), segment.num_rows, segment.official_decode);
    any_official = any_official || segment.official_decode;
    for (const int32_t u : ranges_[range].read) {
      const bool inside = passes_.units[u].range == range;
      // Units of earlier ranges have all of these rows in slots.
      AttentionSegment read =
          slots_below(inside ? segment.staged_position : end, segment.seat, UnitId{u});
      read.row_begin = begin;
      read.row_end = begin + segment.num_rows;
      if (inside) {
        read.staged_rows = staged;
        read.staged_positions = &ascending_[segment.staged_position];
        read.num_staged = num_staged;
      }
      units_[u].segments.push_back(read);
    }
  }
  LCKV_CHECK(static_cast<int32_t>(positions_.size()) == rows.num_rows);
  pad(range);
  RangeBatch batch = finish(range, hidden);
  batch.official_decode = any_official ? official_decode_.data() : nullptr;
  return batch;
}

RangeBatch RangeInputs::warm_rows(int32_t group, const GroupRows& rows,
                                  std::span<const int32_t> staging, float* hidden) {
  clear(2 * group + 1);
  for (const WalkSegment& segment : rows.segments) {
    if (!segment.warm || segment.num_new == 0) continue;
    const int32_t end = segment.first_position + segment.num_rows;
    const int32_t* const staged_end =
        &staging[segment.staged.begin] + (end - segment.staged_position);
    add_positions(end - segment.num_new, segment.num_new);
    staged_rows_.insert(staged_rows_.end(), staged_end - segment.num_new, staged_end);
  }
  return finish(2 * group + 1, hidden);
}

}  // namespace lckv
