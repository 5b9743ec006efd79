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

// Wall time of a step's phases.
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

  // Runs one step to its end. Plans come in order, each once, and the same to every rank; results
  // are the same on every rank. Errors: what the ranks' collectives give, in one line that names
  // rank, step and operation; the runner cannot be used after that.
  virtual absl::StatusOr<StepResult> run(const StepPlan& plan, StepTimes& times) = 0;
};

}  // namespace lckv
