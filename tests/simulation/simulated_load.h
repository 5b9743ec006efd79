// A random load: a layer map, what the scheduler has to work with, and the sequences to come, all
// from one seed; and what each sequence must give.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/simulation/simulated_map.h"
#include "worker/scheduler/scheduler.h"

namespace lckv::simulation {

struct Stream {
  std::shared_ptr<const SequenceSpec> spec;
  int32_t submit_at = 0;
  int32_t cancel_at = -1;
  int32_t pause_at = -1;
  int32_t unpause_at = -1;
  bool submitted = false;
  bool cancelled = false;
  bool started = false;
  bool finished = false;
  std::vector<int32_t> tokens;  // generated, `resumed` included
  int32_t num_prompt_logprobs = 0;
};

struct Ending {
  FinishReason reason = FinishReason::kEos;
  std::vector<int32_t> tokens;
};

// The naive model: one token after the other.
Ending naive_stream(const SequenceSpec& spec);

struct SimulatedLoad {
  SimulatedMap map;
  SchedulerOptions options;
  std::vector<Stream> streams;
  int32_t last_act = 0;  // nobody comes, goes or pauses after this turn
};

SimulatedLoad make_load(uint64_t seed);

}  // namespace lckv::simulation
