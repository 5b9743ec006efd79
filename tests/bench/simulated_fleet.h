// SimulatedFleet: replicas of simulated devices in this process, at ports of their own, whose
// tokens are noted as they leave the engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/bench/emissions.h"

namespace lckv::bench {

struct SimulatedFleetOptions {
  std::string model;  // folder
  int num_replicas = 1;
  int max_num_seqs = 64;  // of each
  absl::Duration step;    // what every step takes
};

class SimulatedFleet {
 public:
  // `emissions` outlives it. Ends the program where a port cannot be had or the model not be read.
  SimulatedFleet(const SimulatedFleetOptions& options, Emissions& emissions);
  ~SimulatedFleet();

  // "127.0.0.1:1,127.0.0.1:2", as a router's --workers takes them.
  std::string addresses() const;
  // Running and waiting at all replicas, as they said last.
  int num_sequences() const;

 private:
  class Replica;
  std::vector<std::unique_ptr<Replica>> replicas_;
};

}  // namespace lckv::bench
