// StepPlans on the wire between a leader and its ranks (proto/lckv/internal/v1/rank.proto).
//
// Pure functions, any thread. read_plan(write_plan(plan)) is the plan, bit for bit.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "lckv/internal/v1/rank.pb.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

void write_plan(const StepPlan& plan, internal::v1::StepPlan& to);

// Errors: InvalidArgument naming the field whose columns do not fit together.
absl::StatusOr<StepPlan> read_plan(const internal::v1::StepPlan& from);

// Of ids and settled rows: what all ranks of a replica must agree about.
uint64_t digest_of(const StepResult& result);

}  // namespace lckv
