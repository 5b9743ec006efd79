// LocalReplica: the production scheduler and runner in this process, turned by the test's own hand.
//
// What comes of each sequence is kept as a transcript: tokens, and the logits they were drawn from,
// bit for bit.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/support/local_runner.h"
#include "worker/kv/mirrored_tables.h"
#include "worker/scheduler/scheduler.h"

namespace lckv {

struct Transcript {
  std::vector<int32_t> tokens;                   // without `resumed`
  std::map<int32_t, std::vector<float>> logits;  // by number of the generated token
  // By position of the prompt token that they predict.
  std::map<int32_t, std::vector<float>> prompt_logits;
  bool finished = false;
  int32_t num_prefill_walks = 0;
  int32_t num_preemptions = 0;
  int32_t num_cached_tokens = 0;
};

// What differs first, bit for bit, walks, preemptions and hits aside; empty where nothing does.
std::string difference(const Transcript& a, const Transcript& b);

class LocalReplica {
 public:
  static absl::StatusOr<std::unique_ptr<LocalReplica>> open(
      const LocalOptions& options, std::unique_ptr<Collectives> ranks = nullptr);

  // Logits of every sampled token are kept, those of the prompt where `num_prompt_logprobs` is set.
  SequenceId submit(SequenceSpec spec);
  // Plans up to max_uncommitted_plans steps, runs and commits the oldest. False where nothing can
  // go on, or a step failed.
  bool step();
  const absl::Status& failure() const { return failure_; }
  void run() {
    while (step()) {
    }
  }
  void cancel(SequenceId sequence) { scheduler_->cancel(sequence); }
  Scheduler& scheduler() const { return *scheduler_; }
  const Transcript& transcript(SequenceId sequence) const { return transcripts_.at(raw(sequence)); }
  // A row of keys or values that a running sequence holds.
  std::vector<float> kv(SequenceId sequence, UnitId unit, int32_t position, bool values) const;
  const LocalRunner& local() const { return local_; }

 private:
  LocalReplica(const LocalOptions& options, LocalRunner local);
  void mirror(const StepPlan& plan);
  void poison(const StepPlan& plan, SeatId seat, UnitId unit, size_t num_blocks);
  void append(const StepPlan& plan);
  void fill_with_garbage(int32_t block);
  void record(const StepPlan& plan);
  void take(const std::vector<SequenceEvent>& events);

  const LocalOptions options_;
  LocalRunner local_;
  absl::Status failure_;
  std::unique_ptr<Scheduler> scheduler_;
  MirroredTables tables_;
  std::vector<uint64_t> sequences_;  // by seat
  std::map<uint64_t, Transcript> transcripts_;
  std::deque<StepPlan> planned_;
};

// `count` token ids that follow from the seed alone.
std::vector<int32_t> random_tokens(uint64_t seed, int32_t count, int32_t vocabulary);

}  // namespace lckv
