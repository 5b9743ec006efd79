#include "worker/fit_memory.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/byte_size.h"
#include "worker/scheduler/scheduler.h"

namespace lckv {
namespace {

// In a cyclic map the rows of the first step are walked in the second.
constexpr int kSteps = 2;
// For what one step does not show: shares of long histories that are added up, and the driver's
// own.
constexpr uint64_t kReserve = uint64_t{64} << 20;
constexpr uint64_t kUnit = uint64_t{1} << 20;  // what ranks tell each other is exact in these

// Prompts of as many rows as a step may have.
std::vector<SequenceSpec> fullest_load(const SchedulerOptions& options) {
  std::vector<SequenceSpec> specs;
  int32_t left = options.max_batched_rows;
  while (left > 0 && static_cast<int32_t>(specs.size()) < options.max_num_seqs) {
    const int32_t length = std::min(left, options.max_context - 1);
    if (length <= 0) break;
    specs.push_back({.prompt = std::vector<int32_t>(length, 0), .max_new_tokens = 1});
    left -= length;
  }
  return specs;
}

absl::Status run_fullest_steps(const ServingPlan& plan, const PassPlan& passes,
                               ModelRunner& runner) {
  Scheduler scheduler(plan.scheduler, passes);
  uint64_t num_submitted = 0;
  for (SequenceSpec& spec : fullest_load(plan.scheduler)) {
    const absl::Status status =
        scheduler.submit(SequenceId{++num_submitted},
                         std::make_shared<const SequenceSpec>(std::move(spec)), absl::Now());
    if (!status.ok()) return status;
  }
  for (int i = 0; i < kSteps; ++i) {
    const auto step = scheduler.plan(absl::Now());
    if (!step.has_value()) break;
    StepTimes times;
    const auto result = runner.run(*step, times);
    if (!result.ok()) return result.status();
    scheduler.commit(*result, absl::Now());
  }
  return absl::OkStatus();
}

// KV memory in which the fullest steps can be run.
uint64_t trial_bytes(const ServingPlan& plan, const PassPlan& passes) {
  const MemoryGeometry& geometry = plan.geometry;
  const int64_t tokens = geometry.bytes_per_token * plan.scheduler.max_batched_rows;
  const int64_t ends = geometry.block_bytes * passes.num_units() * plan.scheduler.max_num_seqs;
  return static_cast<uint64_t>(tokens + ends);
}

// Of the device, with the trial's KV memory in it.
absl::StatusOr<DeviceMemory> memory_beside_steps(LoadedModel& loaded) {
  auto runner = make_runner(loaded);
  if (!runner.ok()) return runner.status();
  absl::Status status = run_fullest_steps(loaded.plan, loaded.passes, **runner);
  ModelRunner::Parts parts = ModelRunner::take_apart(*std::move(runner));
  if (!status.ok()) return status;
  loaded.model = std::move(parts.model);
  loaded.ops = std::move(parts.ops);
  loaded.ranks = std::move(parts.ranks);
  return *loaded.ops->memory();
}

// Of all ranks. A float holds 16 TiB in whole units.
absl::StatusOr<uint64_t> least(uint64_t bytes, Collectives& ranks) {
  const auto own = static_cast<float>(bytes / kUnit);
  std::vector<float> all(ranks.size(), own);
  if (ranks.size() > 1) {
    const absl::Status status = ranks.all_gather(&own, 1, all.data());
    if (!status.ok()) return status;
  }
  return static_cast<uint64_t>(*std::min_element(all.begin(), all.end())) * kUnit;
}

}  // namespace

absl::Status fit_memory(WorkerConfig& config, LoadedModel& loaded) {
  if (config.kv_cache_given || !loaded.ops->memory().has_value()) return absl::OkStatus();
  config.kv_cache_bytes = trial_bytes(loaded.plan, loaded.passes);
  if (absl::Status status = update_plan(config, loaded); !status.ok()) return status;
  const auto memory = memory_beside_steps(loaded);
  if (!memory.ok()) return memory.status();
  const MemoryGeometry trial = loaded.plan.geometry;
  const uint64_t others = memory->total - memory->free -
                          static_cast<uint64_t>(trial.num_blocks * trial.block_bytes) + kReserve;
  const auto usable =
      static_cast<uint64_t>(config.gpu_memory_utilization * static_cast<double>(memory->total));
  const auto bytes = least(usable > others ? usable - others : 0, *loaded.ranks);
  if (!bytes.ok()) return bytes.status();
  // More blocks hold longer contexts, which need more staging than the trial had.
  uint64_t staging = 0;
  if (*bytes > 0) {
    config.kv_cache_bytes = *bytes;
    if (absl::Status status = update_plan(config, loaded); !status.ok()) return status;
    staging = static_cast<uint64_t>(
        std::max<int64_t>(0, loaded.plan.geometry.staging_bytes - trial.staging_bytes));
  }
  if (*bytes <= staging) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--gpu-memory-utilization ", config.gpu_memory_utilization, " of ",
        format_byte_size(memory->total), " leaves a rank nothing for keys and values: weights and ",
        "a step of --max-num-batched-tokens ", config.max_num_batched_tokens, " take ",
        format_byte_size(others + staging)));
  }
  config.kv_cache_bytes = *bytes - staging;
  return update_plan(config, loaded);
}

}  // namespace lckv
