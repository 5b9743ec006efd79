#include "worker/engine/rank_progress.h"

namespace lckv {
namespace {

bool is_collective(Operation operation) {
  return operation == Operation::kAllReduce || operation == Operation::kAllGather ||
         operation == Operation::kBroadcast || operation == Operation::kBarrier;
}

}  // namespace

const char* operation_name(Operation operation) {
  switch (operation) {
    case Operation::kStart:
      return "start";
    case Operation::kJoin:
      return "join";
    case Operation::kConnect:
      return "connect";
    case Operation::kLoad:
      return "load";
    case Operation::kWait:
      return "wait";
    case Operation::kPlan:
      return "plan";
    case Operation::kRun:
      return "run";
    case Operation::kAllReduce:
      return "all_reduce";
    case Operation::kAllGather:
      return "all_gather";
    case Operation::kBroadcast:
      return "broadcast";
    case Operation::kBarrier:
      return "barrier";
    case Operation::kWaitForRanks:
      return "wait_for_ranks";
    case Operation::kReport:
      return "report";
  }
  return "unknown";
}

bool waits_for_ranks(Operation operation) {
  return is_collective(operation) || operation == Operation::kWaitForRanks ||
         operation == Operation::kWait || operation == Operation::kJoin ||
         operation == Operation::kConnect;
}

int64_t RankProgress::now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
      .count();
}

void RankProgress::begin(uint64_t step, Operation operation) {
  enter(operation);
  step_ = step;
  turn_began_ = entered_.load();
  ++num_turns_;
}

Operation RankProgress::enter(Operation operation) {
  const Operation before = operation_;
  const int64_t time = now();
  const int64_t spent = time - entered_;
  if (before == Operation::kWait) waiting_ += spent;
  if (is_collective(before)) in_collectives_ += spent;
  if (is_collective(operation)) ++num_collectives_;
  entered_ = time;
  operation_ = operation;
  return before;
}

RankProgress::View RankProgress::look() const {
  return {.step = step_,
          .operation = operation_,
          .num_turns = num_turns_,
          .turn_age = absl::Nanoseconds(now() - turn_began_),
          .waiting = absl::Nanoseconds(waiting_.load()),
          .collectives = absl::Nanoseconds(in_collectives_.load()),
          .num_collectives = num_collectives_};
}

}  // namespace lckv
