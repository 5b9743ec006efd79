// Driver: the scheduler and the runner of one model, stepped by hand: the engine without its
// thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/config.h"
#include "worker/startup.h"

namespace lckv {

class TimedOps;

struct DriverOptions {
  std::string folder;
  std::optional<int32_t> cuda_device;  // its number; absent: the CPU
  bool dummy = true;
  bool reproducible = false;
  int32_t max_batched_tokens = 2048;
  int32_t max_num_seqs = 32;
  int32_t lookahead = 0;
  uint64_t kv_cache_bytes = uint64_t{1} << 30;  // 0: what a device of its own memory has left
  double cpu_offload_gb = 0;
  bool prefix_caching = false;
};

class Driver {
 public:
  static absl::StatusOr<std::unique_ptr<Driver>> open(const DriverOptions& options);
  // What it would run the model on, and nothing else.
  static absl::StatusOr<std::unique_ptr<Ops>> open_ops(const DriverOptions& options);

  struct Turn {
    absl::Duration time;     // plan, launch, collect, commit: from one commit to the next
    absl::Duration kernels;  // of it, in operations
    int32_t num_rows = 0;    // of the first range
    std::vector<SequenceEvent> events;
  };

  // Greedy, without an end but its limit.
  SequenceId submit(std::vector<int32_t> prompt, int32_t max_new_tokens,
                    PrefillMode mode = PrefillMode::kExact);
  void cancel(SequenceId sequence) { scheduler_->cancel(sequence); }
  // Commits one step, as the engine does. Nothing to do gives a turn without rows.
  Turn step();
  // Steps until nothing is left.
  void finish_all();

  // Walks start from zeros instead of the guess.
  void set_cold(bool cold) { cold_ = cold; }
  // While idle, all but the model's own work is done (TimedOps).
  void set_idle(bool idle);
  SchedulerLoad load() const { return scheduler_->load(); }
  const LoadedModel& loaded() const { return loaded_; }
  Ops& ops() const;

 private:
  Driver() = default;

  LoadedModel loaded_;
  absl::Duration kernels_;
  TimedOps* timed_ = nullptr;  // the runner's
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<ModelRunner> runner_;
  uint64_t last_sequence_ = 0;
  std::deque<int32_t> num_rows_;  // of steps that were launched and not committed
  bool cold_ = false;
};

// Ids that are spread over the vocabulary, the same at every call.
std::vector<int32_t> made_up_prompt(int32_t length, int32_t vocabulary, int32_t salt);

}  // namespace lckv
