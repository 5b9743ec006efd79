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
  uint64_t step = 0;
  runner.set_before_layer([&] { progress.begin(step, Operation::kRun); });
  for (;;) {
    progress.enter(Operation::kWait);
    const auto turn = link.next();
    if (!turn.ok()) return turn.status();
    // Also where the leader idles: it is the proof that both loops turn.
    progress.begin(step, Operation::kWait);
    if (turn->end) return absl::OkStatus();
    if (!turn->plan.has_value()) continue;
    step = turn->plan->step;
    progress.begin(step, Operation::kRun);
    log_seats(*turn->plan);
    StepTimes times;
    const auto result = runner.run(*turn->plan, times);
    if (!result.ok()) return result.status();
    progress.enter(Operation::kReport);
    if (absl::Status status = link.done(step, digest_of(*result)); !status.ok()) return status;
  }
}

}  // namespace lckv
