#include "worker/group/run_rank.h"

#include "rpc/logging.h"
#include "worker/group/plan_frames.h"

namespace lckv {
namespace {

// Who is in a step, for whoever follows one request through all processes.
void log_seats(const StepPlan& plan) {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  for (const SeatOpening& opening : plan.opened) {
    log_fields(spdlog::level::debug, "seated",
               {{"request_id", opening.spec->request_id},
                {"choice", opening.spec->sampling.choice},
                {"traceparent", opening.spec->traceparent},
                {"step", plan.step}});
  }
}

}  // namespace

absl::Status run_rank(FollowerLink& link, StepRunner& runner, RankProgress& progress) {
  uint64_t launched = 0;  // the last step that was, as the next
  uint64_t collected = 0;
  StepTimes times;
  const auto collect = [&]() -> absl::Status {
    progress.begin(collected + 1, Operation::kRun);
    const auto result = runner.collect(times);
    if (!result.ok()) return result.status();
    collected = result->step;
    progress.enter(Operation::kReport);
    return link.done(collected, digest_of(*result));
  };
  runner.set_before_layer([&] { progress.begin(launched, Operation::kRun); });
  for (;;) {
    progress.enter(Operation::kWait);
    const auto turn = link.next();
    if (!turn.ok()) return turn.status();
    // Also where the leader idles: it is the proof that both loops turn.
    progress.begin(launched, Operation::kWait);
    if (turn->end) return absl::OkStatus();
    if (turn->plan.has_value()) {
      launched = turn->plan->step;
      progress.begin(launched, Operation::kRun);
      log_seats(*turn->plan);
      if (absl::Status status = runner.launch(*turn->plan, times); !status.ok()) return status;
    }
    // One, as the leader does: when no more may be launched, or nothing more comes.
    const uint64_t num_launched = launched - collected;
    const bool is_full = num_launched == static_cast<uint64_t>(runner.max_launched());
    if (num_launched == 0 || (!is_full && !turn->holds)) continue;
    if (absl::Status status = collect(); !status.ok()) return status;
  }
}

}  // namespace lckv
