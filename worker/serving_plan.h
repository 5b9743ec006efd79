// ServingPlan: everything that follows from the flags and the checkpoint's config: number formats,
// limits and how the memory is cut. A pure value, computed before any weight is read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"
#include "worker/config.h"
#include "worker/engine/geometry.h"
#include "worker/engine/model_runner.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/model_config.h"
#include "worker/scheduler/scheduler.h"

namespace lckv {

struct ServingPlan {
  std::string model_name;
  DType dtype = DType::kFloat32;  // of weights, products' inputs, keys and values
  bool reproducible = false;
  int32_t max_context = 0;  // tokens, prompt plus generated
  int32_t max_logprobs = 0;
  MemoryGeometry geometry;
  SchedulerOptions scheduler;
  RunnerOptions runner;
  std::vector<std::string> warnings;
};

// Under which requests name the model: the flag, else the folder's name.
std::string served_name(const WorkerConfig& config);

// Tokens, prompt plus generated, wherever there is memory for so many.
int32_t wanted_context(const WorkerConfig& config, const ModelConfig& model);

// Errors: InvalidArgument naming the flags that are in each other's way.
absl::StatusOr<ServingPlan> plan_serving(const WorkerConfig& config, const ModelConfig& model,
                                         const PassPlan& passes);

}  // namespace lckv
