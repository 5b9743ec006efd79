#include "worker/kv/pass_plan.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {
namespace {

// The last layer of the group that starts at `first`.
int32_t group_top(const LayerPlan& layers, int32_t first) {
  int32_t top = layers.layers[first].source;
  for (int32_t layer = first; layer <= top; ++layer) {
    top = std::max(top, layers.layers[layer].source);
  }
  return top;
}

void cut_ranges(PassPlan& plan) {
  const int32_t num_layers = plan.layers.num_layers();
  int32_t begin = 0;
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    if (!plan.layers.is_cyclic(layer)) continue;
    const int32_t end = group_top(plan.layers, layer) + 1;
    plan.ordinary.push_back({begin, layer});
    plan.groups.push_back({.layers = {layer, end}});
    begin = end;
    layer = end - 1;
  }
  plan.ordinary.push_back({begin, num_layers});
}

int32_t range_of(const PassPlan& plan, int32_t layer) {
  for (int32_t g = 0; g < plan.num_groups(); ++g) {
    if (layer < plan.groups[g].layers.begin) return 2 * g;
    if (layer < plan.groups[g].layers.end) return 2 * g + 1;
  }
  return 2 * plan.num_groups();
}

void add_reader(UnitPlan& unit, int32_t range, const LayerSpec& reader) {
  for (UnitReader& known : unit.readers) {
    if (known.range != range) continue;
    const bool all = known.window == 0 || reader.window == 0;
    known.window = all ? 0 : std::max(known.window, reader.window);
    known.num_sinks = std::max(known.num_sinks, reader.num_sinks);
    return;
  }
  unit.readers.push_back({range, reader.window, reader.num_sinks});
}

}  // namespace

PassPlan make_pass_plan(LayerPlan layers) {
  PassPlan plan;
  plan.num_passes = layers.num_passes;
  plan.layers = std::move(layers);
  cut_ranges(plan);

  plan.unit_of_layer.assign(plan.layers.num_layers(), -1);
  for (const int32_t layer : plan.layers.cached_layers()) {
    plan.unit_of_layer[layer] = plan.num_units();
    plan.units.push_back({.layer = layer, .range = range_of(plan, layer)});
  }
  for (CyclicGroup& group : plan.groups) {
    for (int32_t layer = group.layers.begin; layer < group.layers.end; ++layer) {
      if (plan.unit_of_layer[layer] >= 0) group.units.push_back(UnitId{plan.unit_of_layer[layer]});
      if (plan.layers.is_cyclic(layer)) group.units_read_upward.push_back(plan.source_unit(layer));
    }
    auto& upward = group.units_read_upward;
    std::sort(upward.begin(), upward.end());
    upward.erase(std::unique(upward.begin(), upward.end()), upward.end());
  }
  for (int32_t layer = 0; layer < plan.layers.num_layers(); ++layer) {
    UnitPlan& unit = plan.units[raw(plan.source_unit(layer))];
    const int32_t range = range_of(plan, layer);
    LCKV_CHECK(unit.range <= range);
    add_reader(unit, range, plan.layers.layers[layer]);
  }
  return plan;
}

}  // namespace lckv
