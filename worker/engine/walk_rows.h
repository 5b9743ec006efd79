// WalkRows: what happens to the staged KV of a walk's rows before and after the model runs over
// them: the first guess, which rows are settled, commits, and what the next walk reads.
//
// A row is settled when every row of the window before it came out as it had been read: what it
// read was then what it should have read. (Exact prefill.)
// Owner: ModelRunner. Thread: the engine's only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/collectives.h"
#include "kernels/ops.h"
#include "worker/engine/device_kv.h"
#include "worker/engine/step_results.h"
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
  // After the walk; the distances that decide which rows are settled are in `results` then. Which
  // rows that are the host is told later, so what only some of them need is done for all that may:
  // a row that is not settled has its slot filled again before anyone sees it, and of a settled one
  // nothing is read from staging. Errors: what the ranks' collectives give.
  absl::StatusOr<ResultSpan<KvDistance>> end(int32_t group, const GroupRows& rows,
                                             std::span<const int32_t> staging,
                                             StepResults& results);
  // Room that the walk of one group may take of the results.
  size_t max_result_bytes(int32_t group) const;
  // Rows settled per segment, from its first one: the same on every rank.
  static std::vector<int32_t> count_settled(const GroupRows& rows,
                                            std::span<const KvDistance> distances);

 private:
  absl::StatusOr<ResultSpan<KvDistance>> compare(int32_t group, const GroupRows& rows,
                                                 std::span<const int32_t> staging,
                                                 StepResults& results);
  // Distances over the heads of all ranks, from those over this one's.
  absl::Status add_ranks(const ResultSpan<KvDistance>& distances);
  void commit(int32_t group, const GroupRows& rows, std::span<const int32_t> staging);
  void promote(int32_t group, const GroupRows& rows, std::span<const int32_t> staging);
  // Adds `count` staging rows of the walk, from its row `first` on.
  void add_ids(const WalkSegment& segment, std::span<const int32_t> staging, int32_t first,
               int32_t count);

  const PassPlan& passes_;
  Ops& ops_;
  const DeviceKv& kv_;
  Collectives& ranks_;
  const int32_t max_rows_;
  const std::unique_ptr<DeviceBuffer> zeros_;  // null where this rank has distances to give
  std::vector<int32_t> ids_;                   // staging rows that the next call is about
  SlotList slots_;
};

}  // namespace lckv
