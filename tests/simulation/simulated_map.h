// A layer map with its ranges derived a second time, the slow way, to check the production plans
// against.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/kv/pass_plan.h"

namespace lckv::simulation {

struct SimulatedLayer {
  int32_t source = 0;
  int32_t window = 0;
  bool strict = false;
  int32_t unit = -1;  // of its own KV; -1: none
  int32_t source_unit = -1;
  int32_t range = 0;  // ordinary k: 2k, group g: 2g + 1
};

struct SimulatedMap {
  std::string name;
  std::vector<SimulatedLayer> layers;
  int32_t num_groups = 0;
  int32_t num_units = 0;
  int32_t num_passes = 1;
  std::vector<int32_t> unit_range;                 // owner
  std::vector<std::vector<int32_t>> range_layers;  // 2G + 1 lists
  PassPlan passes;

  bool cyclic() const { return num_groups > 0; }
};

// In the notation of `layer_types`. `no_diagonal`: no layer sees its own position.
SimulatedMap make_map(const std::string& layer_types, bool no_diagonal, int32_t window);

}  // namespace lckv::simulation
