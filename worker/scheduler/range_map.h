// RangeMap: what the scheduler needs of a PassPlan. Ranges are numbered in the order they run:
// ordinary[k] is range 2k, groups[g] is range 2g + 1.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/kv/pass_plan.h"

namespace lckv {

struct UnitRule {
  struct Reader {
    int32_t range = 0;
    int32_t window = 0;  // a row at t sees positions > t - window
  };
  int32_t owner = 0;            // the range whose rows are written
  std::vector<Reader> readers;  // empty where some reader sees everything: nothing is ever trimmed
};

struct RangeMap {
  int32_t num_groups = 0;
  int32_t num_passes = 1;
  std::vector<int32_t> layers;  // per range
  std::vector<UnitRule> units;

  static int32_t ordinary(int32_t index) { return 2 * index; }
  static int32_t group(int32_t index) { return 2 * index + 1; }
};

RangeMap make_range_map(const PassPlan& passes);

}  // namespace lckv
