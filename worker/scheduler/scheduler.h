// Scheduler: who runs in the next step, on which rows, in which blocks.
//
// Pure: no thread, no clock, no device. Owner and only caller: the engine's thread. Several plans
// may be uncommitted; commits come in plan order. A sequence one of whose walks may settle an
// unknown number of rows takes no part in further plans until that walk is committed; decoding
// sequences go on with tokens named by reference.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/kv/ids.h"
#include "worker/kv/pass_plan.h"
#include "worker/scheduler/sequence_spec.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

struct SchedulerOptions {
  int32_t max_num_seqs = 64;             // seats
  int32_t max_waiting = 1024;            // queue bound
  int64_t max_row_layers = 2048 * 22;    // budget of a step: rows times the layers they run
  int32_t max_batched_rows = 2048;       // rows of one range in one step: buffers are that large
  int32_t max_context = 2048;            // prompt plus generated
  int32_t num_blocks = 0;                // of the device pool
  int32_t num_host_blocks = 0;           // of the host tier, 0: none
  std::vector<int32_t> slots_per_block;  // per unit
  int32_t staging_rows = 0;              // per cyclic group
  // Look-ahead of exact prefill: how many rows a walk takes. 0: by cost.
  int32_t prefill_lookahead = 0;
  // Walk windows are chunks at fixed multiples of prefill_lookahead (> 0), settled whole.
  bool reproducible = false;
  float prefill_tolerance = 0.0F;
  bool official_decode = false;
  // Sequences share blocks of equal beginnings.
  bool prefix_caching = false;
  // For the cost model: Ops::free_rows().
  int32_t free_rows = 16;
  int32_t max_uncommitted_plans = 1;
};

enum class FinishReason : uint8_t { kEos, kStopToken, kMaxNewTokens, kContextFull };

// What a commit tells about one sequence, in the order it happened.
struct SequenceEvent {
  enum class Kind : uint8_t { kStarted, kToken, kPromptLogprob, kFinished };
  Kind kind = Kind::kToken;
  SequenceId sequence{};
  int32_t token = 0;     // kToken
  int32_t position = 0;  // kToken: number of the generated token; kPromptLogprob: prompt position
  std::optional<TokenLogprob> logprob;
  FinishReason reason = FinishReason::kEos;  // kFinished, as the next
  int32_t matched_stop_token = 0;
  int32_t num_prefill_walks = 0;
  int32_t num_preemptions = 0;
  int32_t num_cached_tokens = 0;  // kStarted: prompt tokens that need not run
};

struct SchedulerLoad {
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  std::vector<std::pair<int32_t, int32_t>> waiting;  // priority and how many, highest first
  int32_t num_free_blocks = 0;                       // idle ones included
  int32_t num_idle_blocks = 0;  // free ones that hold the beginning of some text
  int32_t num_blocks = 0;
  int32_t num_free_host_blocks = 0;
  int32_t num_host_blocks = 0;
  int32_t num_free_staging_rows = 0;  // of the fullest group
  int64_t num_cached_tokens = 0;      // positions that running sequences hold
  uint64_t num_preemptions = 0;       // since the start, as all below
  uint64_t num_swapped_out = 0;       // of them, to the host tier
  uint64_t num_prefill_walks = 0;
  uint64_t num_prefill_row_walks = 0;  // rows times walks, prompts only
  uint64_t num_prompt_rows = 0;        // prompt rows that were settled (replays not counted)
  // Prompt tokens of sequences that started and may read shared blocks, and those found there.
  uint64_t num_prefix_queries = 0;
  uint64_t num_prefix_hits = 0;
};

class Scheduler {
 public:
  Scheduler(SchedulerOptions options, PassPlan passes);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Errors: ResourceExhausted where the queue is full; InvalidArgument where the request can never
  // fit (the message names what is too long and the limit).
  absl::Status submit(SequenceId sequence, std::shared_ptr<const SequenceSpec> spec,
                      absl::Time now);
  // No event follows. What the sequence holds is free with the next plan, or once the uncommitted
  // plans naming it are committed. Unknown ids are ignored, as in the next two.
  void cancel(SequenceId sequence);
  // A paused sequence keeps what it holds (until memory runs out) and takes part in no plan.
  void pause(SequenceId sequence);
  void unpause(SequenceId sequence);

  // The next step, or nothing where no sequence can take part or max_uncommitted_plans are out.
  // A plan may hold no rows and only closings and copies.
  std::optional<StepPlan> plan(absl::Time now);
  // In plan order. Events of cancelled sequences are left out.
  std::vector<SequenceEvent> commit(const StepResult& result, absl::Time now);

  bool has_work() const;  // something waits, runs unpaused, or is to be freed
  SchedulerLoad load() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lckv
