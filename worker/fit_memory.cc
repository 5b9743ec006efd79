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
// For what one step does not show: results of longer lists of ids, and the driver's own.
constexpr uint64_t kReserve = uint64_t{64} << 20;
constexpr uint64_t kUnit = uint64_t{1} << 20;  // what ranks tell each other is exact in these

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

// Prompts that fill a step.
struct FullestLoad {
  int32_t num_prompts = 0;
  int32_t length = 0;  // of each
  uint64_t kv_bytes = 0;
};

FullestLoad load_of(int32_t num_prompts, const ServingPlan& plan) {
  const SchedulerOptions& options = plan.scheduler;
  const int32_t share = (options.max_batched_rows + num_prompts - 1) / num_prompts;
  FullestLoad load{.num_prompts = num_prompts,
                   .length = std::max(1, std::min(share, options.max_context - 1))};
  // The token that comes after it is held too.
  const int64_t blocks = num_prompts * plan.geometry.blocks_of(load.length + 1);
  load.kv_bytes = static_cast<uint64_t>(blocks * plan.geometry.block_bytes);
  return load;
}

// As many prompts as there are seats, and rows for them: where windows are narrow, a walk has only
// a window's rows of each. Fewer where their blocks would not fit into the device's `free` memory.
FullestLoad fullest_load(const ServingPlan& plan, uint64_t free) {
  int32_t num_prompts = std::min(plan.scheduler.max_num_seqs, plan.scheduler.max_batched_rows);
  while (num_prompts > 1 && load_of(num_prompts, plan).kv_bytes > free / 2) num_prompts /= 2;
  return load_of(num_prompts, plan);
}

absl::Status run_fullest_steps(const ServingPlan& plan, const PassPlan& passes,
                               const FullestLoad& load, ModelRunner& runner) {
  SchedulerOptions options = plan.scheduler;
  options.max_waiting = std::max(options.max_waiting, load.num_prompts);
  options.prefix_caching = false;  // all prompts are the same, and all are to be run
  Scheduler scheduler(options, passes);
  const auto spec = std::make_shared<const SequenceSpec>(
      SequenceSpec{.prompt = std::vector<int32_t>(load.length, 0), .max_new_tokens = 1});
  for (int32_t i = 0; i < load.num_prompts; ++i) {
    const SequenceId id{static_cast<uint64_t>(i) + 1};
    if (absl::Status status = scheduler.submit(id, spec, absl::Now()); !status.ok()) return status;
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

// Sums of every size that steps may have: NCCL takes device memory for an algorithm when a size
// first asks for it.
absl::Status sum_all_sizes(LoadedModel& loaded) {
  const int64_t most = loaded.plan.scheduler.max_batched_rows;
  const int64_t hidden = loaded.config.hidden_size;
  const auto rows = loaded.ops->allocate(static_cast<size_t>(most * hidden) * sizeof(float));
  for (int64_t count = 1;; count = std::min(2 * count, most)) {
    absl::Status status = loaded.ranks->all_reduce(rows->floats(), count * hidden);
    if (!status.ok()) return status;
    if (count == most) break;
  }
  // Before its memory goes.
  return loaded.ranks->wait();
}

// Of the device, while there is a runner that has run the fullest steps.
absl::StatusOr<DeviceMemory> memory_in_steps(const FullestLoad& load, LoadedModel& loaded) {
  const Ops& ops = *loaded.ops;
  auto runner = make_runner(loaded);
  if (!runner.ok()) return runner.status();
  absl::Status status = run_fullest_steps(loaded.plan, loaded.passes, load, **runner);
  const DeviceMemory memory = *ops.memory();
  ModelRunner::Parts parts = ModelRunner::take_apart(*std::move(runner));
  if (!status.ok()) return status;
  loaded.model = std::move(parts.model);
  loaded.ops = std::move(parts.ops);
  loaded.ranks = std::move(parts.ranks);
  return memory;
}

// What the device holds beside the blocks while it serves, of `memory` during the trial.
uint64_t bytes_beside_blocks(const DeviceMemory& memory, const MemoryGeometry& trial) {
  const uint64_t used = memory.total - memory.free;
  const auto blocks = static_cast<uint64_t>(trial.num_blocks * trial.block_bytes);
  return (used > blocks ? used - blocks : 0) + kReserve;
}

}  // namespace

absl::Status fit_memory(WorkerConfig& config, LoadedModel& loaded) {
  if (config.kv_cache_given || !loaded.ops->memory().has_value()) return absl::OkStatus();
  if (loaded.ranks->size() > 1) {
    // Ranks may have loaded for different times.
    if (absl::Status status = loaded.ranks->barrier(); !status.ok()) return status;
    if (absl::Status status = sum_all_sizes(loaded); !status.ok()) return status;
  }
  const auto free = least(loaded.ops->memory()->free, *loaded.ranks);
  if (!free.ok()) return free.status();
  const FullestLoad load = fullest_load(loaded.plan, *free);
  config.kv_cache_bytes = load.kv_bytes;
  if (absl::Status status = update_plan(config, loaded); !status.ok()) return status;
  const auto memory = memory_in_steps(load, loaded);
  if (!memory.ok()) return memory.status();
  const MemoryGeometry trial = loaded.plan.geometry;
  const uint64_t others = bytes_beside_blocks(*memory, trial);
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
