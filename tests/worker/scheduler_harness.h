// A scheduler under test with a device that settles and samples what the test says.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "worker/scheduler/scheduler.h"

namespace lckv {

// In the notation of `layer_types`; entries marked `s` have `window`.
PassPlan passes_of(const std::string& layer_types, int32_t window = 0, int32_t num_passes = 3);

// Ample room: every limit that a test is about, it sets itself.
SchedulerOptions ample_options(const PassPlan& passes);

SequenceSpec spec_of(int32_t prompt_size, int32_t max_new_tokens);

class SchedulerHarness {
 public:
  SchedulerHarness(SchedulerOptions options, PassPlan passes)
      : scheduler(std::move(options), std::move(passes)) {}

  absl::Status try_submit(uint64_t id, SequenceSpec spec);
  void submit(uint64_t id, SequenceSpec spec);  // expects success
  std::optional<StepPlan> plan() { return scheduler.plan(absl::UnixEpoch()); }
  // Commits with the rows that `settled` and the tokens that `sampled` say.
  std::vector<SequenceEvent> commit(const StepPlan& plan);
  // Plans and commits one step; the plan must exist.
  StepPlan step();
  // Steps until nothing is left, at most `max_steps`.
  void run(int32_t max_steps = 1000);

  // The sequence on a seat of a plan, as plans told.
  uint64_t on_seat(SeatId seat) const { return seats_.at(raw(seat)); }
  int32_t num_tokens(uint64_t id) const;
  bool finished(uint64_t id) const { return finished_.contains(id); }
  const SequenceEvent& finish_of(uint64_t id) const { return finished_.at(id); }

  Scheduler scheduler;
  // Rows settled of a kSettle walk; all of them unless set.
  std::function<int32_t(const WalkSegment&)> settled;
  // The token of a sample; 7 unless set.
  std::function<int32_t(const SampleRow&)> sampled;
  std::vector<SequenceEvent> events;  // of all commits

 private:
  std::map<int32_t, uint64_t> seats_;
  std::map<uint64_t, SequenceEvent> finished_;
};

// The rows of a sequence in a range of a plan; null where it has none.
const OrdinarySegment* ordinary_of(const SchedulerHarness& harness, const StepPlan& plan,
                                   int32_t index, uint64_t id);
const WalkSegment* walk_of(const SchedulerHarness& harness, const StepPlan& plan, int32_t group,
                           uint64_t id);

}  // namespace lckv
