#include "worker/fit_memory.h"

#include <algorithm>
#include <climits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/byte_size.h"
#include "worker/scheduler/scheduler.h"

namespace lckv {
namespace {

// For what one step does not show: the driver's own.
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

// Steps of prompts alone, on a runner that has run none.
class Trial {
 public:
  Trial(const FullestLoad& fullest, const ServingPlan& plan, const PassPlan& passes,
        ModelRunner& runner)
      : fullest_(fullest),
        options_(options_of(fullest, plan)),
        runner_(runner),
        scheduler_(options_, passes) {}

  // In a cyclic map the rows of the first step are walked in the second.
  absl::Status run_fullest_steps() {
    constexpr int kSteps = 2;
    return run(static_cast<int64_t>(fullest_.num_prompts) * fullest_.length, kSteps);
  }

  // Steps of each number of rows that the device repeats, until it has recorded them: what it keeps
  // of them is its memory too.
  absl::Status run_repeated_batches(const Ops& ops) {
    constexpr int kUntilRecorded = 2;
    for (int32_t rows = 1; rows <= fullest_.num_prompts * fullest_.length; ++rows) {
      const bool is_key = ops.padded_rows(rows) == rows || rows == options_.max_batched_rows;
      if (!ops.repeats_batches(rows) || !is_key) continue;
      for (int i = 0; i < kUntilRecorded; ++i) {
        if (absl::Status status = run(rows, INT_MAX); !status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

 private:
  static SchedulerOptions options_of(const FullestLoad& fullest, const ServingPlan& plan) {
    SchedulerOptions options = plan.scheduler;
    options.max_waiting = std::max(options.max_waiting, fullest.num_prompts);
    options.prefix_caching = false;  // all prompts are the same, and all are to be run
    // As wide walks as any that a lone prompt may have.
    if (!options.reproducible && options.prefill_lookahead == 0) {
      options.prefill_lookahead = fullest.length;
    }
    return options;
  }
  absl::Status run(int64_t rows, int max_steps);

  const FullestLoad fullest_;
  const SchedulerOptions options_;
  ModelRunner& runner_;
  Scheduler scheduler_;
  uint64_t last_id_ = 0;
};

// As many prompts as can be, with so many tokens in all, for so many steps; what is left then goes.
absl::Status Trial::run(int64_t rows, int max_steps) {
  std::vector<SequenceId> ids;
  for (int64_t left = std::min<int64_t>(rows, fullest_.num_prompts); left > 0; --left) {
    const auto length = std::min<int64_t>(fullest_.length, (rows + left - 1) / left);
    rows -= length;
    const auto spec = std::make_shared<const SequenceSpec>(
        SequenceSpec{.prompt = std::vector<int32_t>(length, 0), .max_new_tokens = 1});
    const SequenceId id{++last_id_};
    if (absl::Status status = scheduler_.submit(id, spec, absl::Now()); !status.ok()) return status;
    ids.push_back(id);
  }
  for (int i = 0;; ++i) {
    if (i == max_steps) {
      for (const SequenceId id : ids) scheduler_.cancel(id);
    }
    const auto step = scheduler_.plan(absl::Now());
    if (!step.has_value()) break;
    StepTimes times;
    const auto result = runner_.run(*step, times);
    if (!result.ok()) return result.status();
    scheduler_.commit(*result, absl::Now());
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
  Trial trial(load, loaded.plan, loaded.passes, **runner);
  absl::Status status = trial.run_fullest_steps();
  if (status.ok()) status = trial.run_repeated_batches(ops);
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
  WorkerConfig trial_config = config;
  trial_config.kv_cache_bytes = load.kv_bytes;
  trial_config.swap_bytes = 0;  // of the host, which page-locks it for real later
  if (absl::Status status = update_plan(trial_config, loaded); !status.ok()) return status;
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
