#include "worker/scheduler/range_map.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {

RangeMap make_range_map(const PassPlan& passes) {
  LCKV_CHECK(passes.ordinary.size() == passes.groups.size() + 1);
  RangeMap map{.num_groups = passes.num_groups(), .num_passes = passes.num_passes};
  for (size_t k = 0; k < passes.ordinary.size(); ++k) {
    map.layers.push_back(passes.ordinary[k].num_layers());
    if (k < passes.groups.size()) map.layers.push_back(passes.groups[k].layers.num_layers());
  }
  for (const UnitPlan& unit : passes.units) {
    UnitRule rule{.owner = unit.range};
    const bool sees_all = std::any_of(
        unit.readers.begin(), unit.readers.end(),
        [](const UnitReader& reader) { return reader.window == 0 || reader.num_sinks > 0; });
    if (!sees_all) {
      for (const UnitReader& reader : unit.readers) {
        rule.readers.push_back({.range = reader.range, .window = reader.window});
      }
    }
    map.units.push_back(std::move(rule));
  }
  return map;
}

}  // namespace lckv
