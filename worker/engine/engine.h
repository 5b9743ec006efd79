// Engine: the loop. Drain the mailbox, plan steps, launch them, commit the oldest, report it. Where
// the device runs on its own, one step more than it runs is launched already.
//
// One thread, started by start() and joined by stop(), owns the Scheduler and the StepRunner.
// post() may be called from any thread; everything else from the owner's.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/engine/rank_progress.h"
#include "worker/engine/step_runner.h"
#include "worker/scheduler/scheduler.h"

namespace lckv {

struct SubmitCommand {
  SequenceId sequence{};
  std::shared_ptr<const SequenceSpec> spec;
};
struct CancelCommand {
  SequenceId sequence{};
};
struct PauseCommand {
  SequenceId sequence{};
};
struct UnpauseCommand {
  SequenceId sequence{};
};
using EngineCommand = std::variant<SubmitCommand, CancelCommand, PauseCommand, UnpauseCommand>;

struct Refusal {
  SequenceId sequence{};
  absl::Status status;
};

// What one turn of the loop did, or is about to do.
struct StepReport {
  uint64_t step = 0;      // of the last step committed
  bool ran_step = false;  // false: only commands were taken, or a beat was due
  // They take part in the step that is launched next, for the first time. A report of its own,
  // before it; the step before may still run.
  std::vector<SequenceId> seated;
  std::vector<SequenceEvent> events;
  std::vector<Refusal> refusals;
  uint64_t num_commands = 0;  // taken from the mailbox since the start
  SequenceId last_submit{};   // the highest of those taken
  uint64_t num_layers = 0;    // run since the start: grows while a long step goes on
  SchedulerLoad load;
  StepTimes times;  // of the runner's phases
  absl::Duration plan_time;
  absl::Duration step_time;  // plan + run + commit
  int32_t num_sampled = 0;
  int32_t num_rows = 0;  // rows of the step's first range
  int64_t num_row_layers = 0;
};

// Called on the engine's thread after every turn that did something and at least every beat
// interval, also when idle and between the layers of a long step: it is the proof that the loop
// turns. Must not block.
using StepSink = std::function<void(const StepReport&)>;

struct EngineOptions {
  size_t max_mailbox = 65536;
  absl::Duration beat_interval = absl::Milliseconds(500);
  // Kept up to date by the loop, which it must outlive. Null: nobody watches.
  RankProgress* progress = nullptr;
  // On the engine's thread: each plan as soon as it is made, and what came of it before it is
  // committed. Must not block. All empty: nobody else needs them.
  std::function<void(const StepPlan&)> on_plan;
  // No plan follows before a step that was launched is committed, though one might be launched.
  std::function<void()> on_hold;
  std::function<void(const StepResult&)> on_result;
  // Called once, on the engine's thread, where a step failed: a peer of a replica of several ranks
  // did not come or is gone. The status names rank, step and operation. The loop has ended: nothing
  // is reported after it. May be empty.
  std::function<void(const absl::Status&)> failed;
};

class Engine {
 public:
  Engine(EngineOptions options, std::unique_ptr<Scheduler> scheduler,
         std::unique_ptr<StepRunner> runner, StepSink sink);
  // Stops if start() was called and stop() was not.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  void start();
  // Ends the loop after all steps that were planned, and joins the thread. Sequences still there
  // end silently.
  void stop();
  // ResourceExhausted where the mailbox is full; then nothing was taken.
  absl::Status post(EngineCommand command);

 private:
  void loop();
  // Takes all commands; waits for one until `deadline`. False once stop() was called.
  bool drain(absl::Time deadline, std::vector<EngineCommand>& commands);
  void apply(EngineCommand& command, absl::Time now, StepReport& report);
  void report_seats(const StepPlan& plan);
  void before_layer();
  // A report of what has been so far.
  StepReport report_now() const;
  // Plans and launches what can be, and commits one step. False where no sequence can take part.
  absl::StatusOr<bool> step(StepReport& report);
  absl::Status launch_planned(StepReport& report);
  absl::Status commit_next(StepReport& report);

  const EngineOptions options_;
  const std::unique_ptr<Scheduler> scheduler_;
  const std::unique_ptr<StepRunner> runner_;
  RankProgress unwatched_;
  RankProgress& progress_;
  const StepSink sink_;
  // The engine's thread's:
  std::deque<StepPlan> planned_;   // and not launched yet
  std::deque<StepPlan> launched_;  // and not committed yet
  absl::Time beat_;                // when the next report is due
  uint64_t num_commands_ = 0;
  SequenceId last_submit_{};
  uint64_t num_layers_ = 0;
  uint64_t last_step_ = 0;     // committed
  uint64_t running_step_ = 0;  // or launched last

  // Standard mutexes throughout: ThreadSanitizer sees them, not those of a prebuilt Abseil.
  std::mutex mutex_;  // guards the next three
  std::condition_variable posted_;
  std::vector<EngineCommand> mailbox_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lckv
