// SimulatedRunner: runs steps on a device that is not there. A step takes as long as StepCost says
// and gives tokens that depend on the request alone: on prompt, sampling and position, never on the
// device, on what else runs or on where the request was resumed.
//
// It ends no sequence: every one runs to its limit of tokens. A walk's rows settle as the
// demo model's were measured to (worker/scheduler/lookahead_cost.cc): within a tolerance after two
// walks each, bitwise two rows a walk. Bias and penalties change nothing; logprobs have
// the right form and no meaning.
//
// Owner and only thread: the engine's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "worker/engine/step_runner.h"
#include "worker/sim/step_cost.h"

namespace lckv {

struct SimulatedRunnerOptions {
  int32_t max_num_seqs = 0;
  int32_t vocabulary = 0;
  int32_t num_groups = 0;
};

class SimulatedRunner final : public StepRunner {
 public:
  SimulatedRunner(const SimulatedRunnerOptions& options, StepCost cost);

  void set_before_layer(std::function<void()> hook) override { before_layer_ = std::move(hook); }
  absl::Status launch(const StepPlan& plan, StepTimes& times) override;
  absl::StatusOr<StepResult> collect(StepTimes&) override { return std::move(result_); }

 private:
  struct Seat {
    std::shared_ptr<const SequenceSpec> spec;  // null: empty
    uint64_t request = 0;                      // hash of what tokens depend on
    // [group]: walks of the rows that are not settled, from `first` on.
    struct Walked {
      int64_t first = 0;
      std::vector<int32_t> walks;
    };
    std::vector<Walked> walked;
  };
  void open(const SeatOpening& opening);
  int32_t settle(const WalkSegment& segment, Seat::Walked& walked) const;
  SampleResult draw(const SampleRow& row) const;
  void pass(absl::Time end);

  const SimulatedRunnerOptions options_;
  const StepCost cost_;
  std::function<void()> before_layer_ = [] {};
  uint64_t last_step_ = 0;
  StepResult result_;  // of the last step
  std::vector<Seat> seats_;
};

}  // namespace lckv
