// WalkRows: what happens to the staged KV of a walk's rows before and after the model runs over
// them: the first guess, which rows are settled, commits, and what the next walk reads.
//
// A row is settled when every row of the window before it came out as it had been read: what it
// read was then what it should have read. (Exact prefill.)
// Owner: ModelRunner. Thread: the engine's only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/collectives.h"
#include "kernels/ops.h"
#include "worker/engine/device_kv.h"
#include "worker/kv/pass_plan.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

class WalkRows {
 public:
  // The references must outlive it.
  WalkRows(const RunnerOptions& options, const PassPlan& passes, Ops& ops, const DeviceKv& kv,
           Collectives& ranks);

  // `staging` in all calls: StepPlan::staging as numbers.
  // New rows that do not start warm are read as zeros first.
  void clear_new(int32_t group, const GroupRows& rows, std::span<const int32_t> staging);
  // After the walk. Returns the rows settled per segment, from its first one: the same on every
  // rank. Errors: what the ranks' collectives give.
  absl::StatusOr<std::vector<int32_t>> end(int32_t group, const GroupRows& rows,
                                           std::span<const int32_t> staging);

 private:
  absl::Status compare(int32_t group, const GroupRows& rows, std::span<const int32_t> staging);
  // Distances over the heads of all ranks, from those over this one's.
  absl::Status add_ranks();
  std::vector<int32_t> count_settled(const GroupRows& rows) const;
  void commit(int32_t group, const GroupRows& rows, std::span<const int32_t> staging,
              const std::vector<int32_t>& num_settled);
  void promote(int32_t group, const GroupRows& rows, std::span<const int32_t> staging,
               const std::vector<int32_t>& num_settled);
  // Adds `count` staging rows of the walk, from its row `first` on.
  void add_ids(const WalkSegment& segment, std::span<const int32_t> staging, int32_t first,
               int32_t count);

  const PassPlan& passes_;
  Ops& ops_;
  const DeviceKv& kv_;
  Collectives& ranks_;
  const bool counts_heads_;            // of those ranks that hold the same KV heads the first does
  std::vector<int32_t> ids_;           // staging rows that the next call is about
  std::vector<float> tolerances_;      // of each
  std::vector<KvDistance> distances_;  // of each in each unit, unit by unit
  std::vector<float> sums_;            // what the ranks add up
  std::vector<uint8_t> came_out_;      // of each: as it had been read, in every unit
  SlotList slots_;
};

}  // namespace lckv
