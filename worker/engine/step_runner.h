// StepRunner: what runs the engine's steps: a model on its device (worker/engine/model_runner.h),
// or a simulated one (worker/sim/simulated_runner.h).
//
// Owner and only thread: the engine's.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

// Wall time of a step's phases, on the host. What is left of a step whose phases return early is in
// `sample`.
struct StepTimes {
  absl::Duration copies;
  absl::Duration ordinary;
  absl::Duration walks;
  absl::Duration logits;
  absl::Duration sample;
};

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Called before each layer that a step runs, on its thread: a long step's sign of life.
  virtual void set_before_layer(std::function<void()> hook) = 0;

  // How many steps may be launched and not collected: 1 where launching one runs it to its end.
  virtual int max_launched() const { return 1; }
  // Begins one step. Plans come in order, each once, and the same to every rank. Errors: what the
  // ranks' collectives give, in one line that names rank, step and operation; the runner cannot be
  // used after that.
  virtual absl::Status launch(const StepPlan& plan, StepTimes& times) = 0;
  // Waits for the end of the oldest step that was not collected. Its result is the same on every
  // rank. Errors: as above.
  virtual absl::StatusOr<StepResult> collect(StepTimes& times) = 0;

  // Both, where there is nothing to do meanwhile.
  absl::StatusOr<StepResult> run(const StepPlan& plan, StepTimes& times) {
    if (absl::Status status = launch(plan, times); !status.ok()) return status;
    return collect(times);
  }
};

}  // namespace lckv
