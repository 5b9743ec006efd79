// Simulation: the production scheduler, with plans uncommitted in flight, under a random load from
// one seed, over a SymbolicDevice; every stream is compared with the naive token-by-token one.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/simulation/simulated_map.h"
#include "tests/simulation/symbolic_device.h"
#include "worker/scheduler/scheduler.h"

namespace lckv::simulation {

// What is broken on purpose, between scheduler and device, to see that the checks find it.
enum class Defect : uint8_t {
  kNone,
  kLostAppend,           // a block never reaches the mirrored table
  kSharedBlock,          // two blocks are one
  kSharedStagingRow,     // two staging rows are one
  kTokenReference,       // a sampled token is named one off
  kUnsettledRow,         // one row more is called settled than was
  kEarlyRelease,         // blocks return while an uncommitted plan names them
  kMisalignedWindow,     // a reproducible window ends one row before its chunk
  kStaleOrder,           // a plan runs before the one made before it
  kSharedAcrossTenants,  // blocks are taken that another tenant or salt wrote
  kSharedFreedEarly,     // who ends first frees what others share
  kSharedInexact,        // generated tokens are shared in spite of a tolerance
};

struct Outcome {
  std::string error;   // what went wrong first; empty: all was right
  SchedulerLoad load;  // at the end
};

// Runs one seed to its end.
Outcome simulate(uint64_t seed, Defect defect = Defect::kNone);

}  // namespace lckv::simulation
