// ModelRunner: turns a StepPlan into device inputs, runs the model's ranges and the sampler, and
// tells what came of it. It knows addresses, never requests.
//
// Owner and only thread: the engine's. All memory is allocated by create().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/collectives.h"
#include "kernels/ops.h"
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

// Wall time of a step's phases.
struct StepTimes {
  absl::Duration copies;
  absl::Duration ordinary;
  absl::Duration walks;
  absl::Duration logits;
  absl::Duration sample;
};

class ModelRunner {
 public:
  // Errors: ResourceExhausted where the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<ModelRunner>> create(RunnerOptions options, PassPlan passes,
                                                             std::unique_ptr<Model> model,
                                                             std::unique_ptr<Ops> ops,
                                                             std::unique_ptr<Collectives> ranks);
  ~ModelRunner();

  // Called before each layer that a step runs, on its thread: a long step's sign of life.
  void set_before_layer(std::function<void()> hook);

  // Runs one step to its end. Plans come in order, each once, and the same to every rank; results
  // are the same on every rank. Errors: what the ranks' collectives give, in one line that names
  // rank, step and operation; the runner cannot be used after that.
  absl::StatusOr<StepResult> run(const StepPlan& plan, StepTimes& times);

 private:
  ModelRunner();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lckv
