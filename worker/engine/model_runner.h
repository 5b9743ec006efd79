// ModelRunner: turns a StepPlan into device inputs, runs the model's ranges and the sampler, and
// tells what came of it. It knows addresses, never requests.
//
// Where the device runs on its own, a step is launched while the one before it runs: it reads
// tokens drawn there where they lie, and the host waits only for the tokens of the step before
// where a row's penalties count them.
//
// Owner and only thread: the engine's. All memory is allocated by create().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/collectives.h"
#include "kernels/ops.h"
#include "worker/engine/step_runner.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/model.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

struct RunnerOptions {
  int32_t max_num_seqs = 0;
  int32_t max_batched_rows = 0;
  int32_t max_context = 0;
  int32_t num_blocks = 0;
  int32_t num_host_blocks = 0;
  int64_t block_bytes = 0;
  std::vector<int32_t> slots_per_block;  // per unit
  int32_t staging_rows = 0;              // per cyclic group
  // Several ranks: of those that hold the same KV heads the first counts them.
  bool counts_kv_heads = true;
};

class ModelRunner final : public StepRunner {
 public:
  // Errors: ResourceExhausted where the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> create(RunnerOptions options, PassPlan passes,
                                                             std::unique_ptr<Model> model,
                                                             std::unique_ptr<Ops> ops,
                                                             std::unique_ptr<Collectives> ranks);
  ~ModelRunner() override;

  // What create() was given, to be used again. Frees the memory of steps.
  struct Parts {
    std::unique_ptr<Ops> ops;
    std::unique_ptr<Collectives> ranks;
    std::unique_ptr<Model> model;
  };
  static Parts take_apart(std::unique_ptr<ModelRunner> runner);

  void set_before_layer(std::function<void()> hook) override;
  int max_launched() const override;
  absl::Status launch(const StepPlan& plan, StepTimes& times) override;
  absl::StatusOr<StepResult> collect(StepTimes& times) override;

 private:
  ModelRunner();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lckv
