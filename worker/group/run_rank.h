// run_rank: the loop of a rank that is not the leader: read a plan, launch it, collect as the
// leader does, say so. What it holds is a pure function of the plans.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "worker/engine/rank_progress.h"
#include "worker/engine/step_runner.h"
#include "worker/group/follower_link.h"

namespace lckv {

// On one thread, until the leader ends the replica in order. Errors: Unavailable where the leader
// is lost, and what a step failed with.
absl::Status run_rank(FollowerLink& link, StepRunner& runner, RankProgress& progress);

}  // namespace lckv
