#include "tests/bench/driver.h"

#include <utility>

#include "absl/time/clock.h"
#include "kernels/check.h"
#include "tests/bench/timed_ops.h"
#include "worker/fit_memory.h"

namespace lckv {
namespace {

WorkerConfig config_of(const DriverOptions& options) {
  WorkerConfig config;
  config.model = options.folder;
  config.load_format = options.dummy ? LoadFormat::kDummy : LoadFormat::kAuto;
  config.dtype = NumberFormat::kBFloat16;
  config.reproducible = options.reproducible ? Choice::kOn : Choice::kOff;
  config.max_num_batched_tokens = options.max_batched_tokens;
  config.max_num_seqs = options.max_num_seqs;
  config.prefill_lookahead = options.lookahead;
  config.kv_cache_bytes = options.kv_cache_bytes;
  config.kv_cache_given = options.kv_cache_bytes > 0;
  config.cpu_offload_gb = options.cpu_offload_gb;
  config.swap_bytes = 0;
  config.enable_prefix_caching = options.prefix_caching;
  if (options.cuda_device) {
    config.device = Device::kCuda;
    config.device_index = *options.cuda_device;
  }
  return config;
}

absl::StatusOr<LoadedModel> read_for_device(const WorkerConfig& config) {
  auto loaded = read_model(config);
  if (!loaded.ok()) return loaded.status();
  if (absl::Status status = open_device(config, *loaded); !status.ok()) return status;
  return loaded;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> Driver::open_ops(const DriverOptions& options) {
  auto loaded = read_for_device(config_of(options));
  if (!loaded.ok()) return loaded.status();
  return std::move(loaded->ops);
}

absl::StatusOr<std::unique_ptr<Driver>> Driver::open(const DriverOptions& options) {
  std::unique_ptr<Driver> driver(new Driver);
  WorkerConfig config = config_of(options);
  auto loaded = read_for_device(config);
  if (!loaded.ok()) return loaded.status();
  driver->loaded_ = *std::move(loaded);
  LoadedModel& model = driver->loaded_;
  auto timed = std::make_unique<TimedOps>(std::move(model.ops), &driver->kernels_);
  driver->timed_ = timed.get();
  model.ops = std::move(timed);
  if (absl::Status status = open_weights(config, model); !status.ok()) return status;
  if (absl::Status status = load_weights(config, single_rank_collectives(), driver->loaded_);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = fit_memory(config, model); !status.ok()) return status;
  auto runner = make_runner(driver->loaded_);
  if (!runner.ok()) return runner.status();
  driver->runner_ = *std::move(runner);
  SchedulerOptions scheduling = driver->loaded_.plan.scheduler;
  scheduling.max_uncommitted_plans = driver->runner_->max_launched();
  driver->scheduler_ = std::make_unique<Scheduler>(scheduling, driver->loaded_.passes);
  return driver;
}

Ops& Driver::ops() const { return *timed_; }

void Driver::set_idle(bool idle) { timed_->set_idle(idle); }

SequenceId Driver::submit(std::vector<int32_t> prompt, int32_t max_new_tokens, PrefillMode mode) {
  auto spec = std::make_shared<SequenceSpec>();
  spec->prompt = std::move(prompt);
  spec->max_new_tokens = max_new_tokens;
  spec->prefill_mode = mode;
  spec->sampling.temperature = 0;
  const SequenceId id{++last_sequence_};
  LCKV_CHECK(scheduler_->submit(id, std::move(spec), absl::Now()).ok());
  return id;
}

Driver::Turn Driver::step() {
  Turn turn;
  kernels_ = absl::ZeroDuration();
  const absl::Time began = absl::Now();
  StepTimes times;
  while (auto plan = scheduler_->plan(absl::Now())) {
    if (cold_) {
      for (GroupRows& group : plan->groups) {
        for (WalkSegment& segment : group.segments) segment.warm = false;
      }
    }
    LCKV_CHECK(runner_->launch(*plan, times).ok());
    num_rows_.push_back(plan->ordinary.front().num_rows);
  }
  if (num_rows_.empty()) return turn;
  const StepResult result = runner_->collect(times).value();
  turn.events = scheduler_->commit(result, absl::Now());
  turn.time = absl::Now() - began;
  turn.kernels = kernels_;
  turn.num_rows = num_rows_.front();
  num_rows_.pop_front();
  return turn;
}

void Driver::finish_all() {
  while (scheduler_->has_work() || !num_rows_.empty()) {
    const Turn turn = step();
    LCKV_CHECK(turn.time > absl::ZeroDuration());
  }
}

std::vector<int32_t> made_up_prompt(int32_t length, int32_t vocabulary, int32_t salt) {
  std::vector<int32_t> prompt;
  uint32_t state = 12345 + static_cast<uint32_t>(salt) * 7919;
  for (int32_t i = 0; i < length; ++i) {
    state = state * 1664525 + 1013904223;
    const uint32_t spread = (state >> 8) % static_cast<uint32_t>(vocabulary - 3);
    prompt.push_back(static_cast<int32_t>(3 + spread));
  }
  return prompt;
}

}  // namespace lckv
