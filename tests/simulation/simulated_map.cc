#include "tests/simulation/simulated_map.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"
#include "worker/kv/layer_plan.h"

namespace lckv::simulation {

SimulatedMap make_map(const std::string& layer_types, bool no_diagonal, int32_t window) {
  SimulatedMap map{.name =
                       absl::StrCat(layer_types, no_diagonal ? " nodiag" : "", " window ", window)};
  const std::vector<std::string> entries = absl::StrSplit(layer_types, '_');
  const auto count = static_cast<int32_t>(entries.size());
  for (int32_t i = 0; i < count; ++i) {
    SimulatedLayer layer{.source = std::stoi(entries[i])};
    layer.window = entries[i].back() == 's' ? window : 0;
    layer.strict = no_diagonal || layer.source > i;
    map.layers.push_back(layer);
  }
  const auto is_read = [&](int32_t layer) {
    return std::any_of(map.layers.begin(), map.layers.end(),
                       [layer](const SimulatedLayer& other) { return other.source == layer; });
  };
  // A layer is in a group if some layer at or below it reads a layer at or above it, upward; layers
  // that hang together so are one group.
  int32_t group_end = 0;
  map.range_layers.emplace_back();
  for (int32_t i = 0; i < count; ++i) {
    if (i == group_end && i > 0 && map.range_layers.size() % 2 == 0) {
      map.range_layers.emplace_back();
    }
    if (i >= group_end && map.layers[i].source > i) map.range_layers.emplace_back();
    if (map.layers[i].source > i || i < group_end) {
      group_end = std::max(group_end, map.layers[i].source + 1);
    }
    map.range_layers.back().push_back(i);
    map.layers[i].range = static_cast<int32_t>(map.range_layers.size()) - 1;
    if (is_read(i)) {
      map.layers[i].unit = map.num_units++;
      map.unit_range.push_back(map.layers[i].range);
    }
  }
  if (map.range_layers.size() % 2 == 0) map.range_layers.emplace_back();
  for (SimulatedLayer& layer : map.layers) layer.source_unit = map.layers[layer.source].unit;
  map.num_groups = static_cast<int32_t>(map.range_layers.size()) / 2;
  map.num_passes = map.num_groups > 0 ? 3 : 1;

  absl::StatusOr<LayerPlan> plan = parse_layer_map(layer_types, {.num_layers = count,
                                                                 .kv_heads = 1,
                                                                 .head_dim = 16,
                                                                 .sliding_window = window,
                                                                 .force_nodiag = no_diagonal,
                                                                 .num_passes = map.num_passes});
  LCKV_CHECK(plan.ok());
  map.passes = make_pass_plan(*std::move(plan));
  LCKV_CHECK(map.passes.num_groups() == map.num_groups);
  return map;
}

}  // namespace lckv::simulation
