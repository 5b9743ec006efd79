// RankProgress: what a rank's loop is doing, for whoever watches it.
//
// Written by one thread, the loop's (before there is a loop, by the one that starts it up); look()
// may be called from any. Outlives the loop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/time/time.h"

namespace lckv {

enum class Operation : uint8_t {
  kStart,
  kJoin,     // waiting for the other ranks of the replica, or for the leader
  kConnect,  // the collectives
  kLoad,
  kWait,  // for work or, on a follower, for the leader's next plan
  kPlan,
  kRun,
  kAllReduce,
  kAllGather,
  kBroadcast,
  kBarrier,
  // Until collectives that were begun are done. Its time is not theirs: on a device that runs what
  // it is given in order, it is mostly the step's own.
  kWaitForRanks,
  kReport,
};

// As logs and metrics have it: "all_reduce".
const char* operation_name(Operation operation);
// One that goes on only when another rank does its part.
bool waits_for_ranks(Operation operation);

class RankProgress {
 public:
  struct View {
    uint64_t step = 0;  // the one in progress, or the last one
    Operation operation = Operation::kStart;
    uint64_t num_turns = 0;  // of the loop, and layers; 0: still starting
    absl::Duration turn_age;
    absl::Duration waiting;      // in kWait, since the start
    absl::Duration collectives;  // in collectives, since the start
    uint64_t num_collectives = 0;
  };

  // A new turn of the loop, or the next layer of its step: the proof that it goes on.
  void begin(uint64_t step, Operation operation);
  // The next operation of the turn; the one before it.
  Operation enter(Operation operation);
  View look() const;

 private:
  using Clock = std::chrono::steady_clock;
  static int64_t now();  // nanoseconds

  std::atomic<uint64_t> step_{0};
  std::atomic<Operation> operation_{Operation::kStart};
  std::atomic<uint64_t> num_turns_{0};
  std::atomic<int64_t> turn_began_{now()};
  std::atomic<int64_t> entered_{now()};
  std::atomic<int64_t> waiting_{0};
  std::atomic<int64_t> in_collectives_{0};
  std::atomic<uint64_t> num_collectives_{0};
};

}  // namespace lckv
