// RangeInputs: turns a range's rows in a plan into what the model takes.
//
// Batches of as many rows of one range name the same arrays (Ops::repeat_batch); rows and segments
// beyond the plan's make few different numbers of them. Owner: ModelRunner. Thread: the engine's
// only. A batch stays valid until the next one is made.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/engine/device_kv.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/model.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

class RangeInputs {
 public:
  // The references must outlive it.
  RangeInputs(const RunnerOptions& options, const PassPlan& passes, const DeviceKv& kv,
              const Ops& ops);

  RangeBatch ordinary(int32_t index, const RangeRows& rows, float* hidden);
  // `staging`: StepPlan::staging as numbers.
  RangeBatch walk(int32_t group, const GroupRows& rows, std::span<const int32_t> staging,
                  float* hidden);
  // For the model's first guess: the walk's new rows that start warm; may have no rows.
  RangeBatch warm_rows(int32_t group, const GroupRows& rows, std::span<const int32_t> staging,
                       float* hidden);

 private:
  struct Unit {
    std::vector<AttentionSegment> segments;
    SlotList slots;
  };
  struct Range {
    std::vector<int32_t> owned;
    std::vector<int32_t> read;  // by some layer of the range
  };
  void clear(int32_t range);
  // Adds rows that do nothing.
  void pad(int32_t range);
  RangeBatch finish(int32_t range, float* hidden);
  // A segment over slots of positions below `end`.
  AttentionSegment slots_below(int32_t end, SeatId seat, UnitId unit) const;
  void add_positions(int32_t first, int32_t num_rows) {
    positions_.insert(positions_.end(), &ascending_[first], &ascending_[first] + num_rows);
  }

  const PassPlan& passes_;
  const DeviceKv& kv_;
  const Ops& ops_;
  const int32_t max_rows_;
  std::vector<Range> ranges_;
  std::vector<int32_t> ascending_;  // 0, 1, 2, ... beyond every position

  std::vector<int32_t> positions_;
  std::vector<int32_t> staged_rows_;
  std::vector<uint8_t> official_decode_;
  std::vector<Unit> units_;
  std::vector<UnitRows> unit_rows_;
};

}  // namespace lckv
