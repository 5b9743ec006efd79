// PassPlan: a LayerPlan's layers cut into the ranges that steps run, in order.
//
// ordinary[0], groups[0], ordinary[1], ... groups[G-1], ordinary[G]: the alternation always holds;
// an ordinary range may be empty (a map that starts with a cyclic layer, adjacent groups, a group
// that ends at the top). A group begins at a layer that reads upward and ends where no layer within
// it reads further up (the iteration plan of the official LCKV code, models/utils.py).
#pragma once

#include <cstdint>
#include <vector>

#include "worker/kv/ids.h"
#include "worker/kv/layer_plan.h"

namespace lckv {

struct LayerRange {
  int32_t begin = 0;  // layers [begin, end)
  int32_t end = 0;
  int32_t num_layers() const { return end - begin; }
};

struct CyclicGroup {
  LayerRange layers;
  std::vector<UnitId> units;              // cached layers inside, ascending
  std::vector<UnitId> units_read_upward;  // of them, read by a layer below: what walks iterate
};

// Ranges numbered in the order they run: ordinary[k] is 2k, groups[g] is 2g + 1.
struct UnitReader {
  int32_t range = 0;
  int32_t window = 0;  // the widest of that range's readers; 0: some reader has none
  int32_t num_sinks = 0;
};

struct UnitPlan {
  int32_t layer = 0;
  int32_t range = 0;                // owner
  std::vector<UnitReader> readers;  // one per range that reads it, ascending
};

struct PassPlan {
  LayerPlan layers;
  std::vector<LayerRange> ordinary;  // G + 1
  std::vector<CyclicGroup> groups;   // G
  std::vector<UnitPlan> units;
  std::vector<int32_t> unit_of_layer;  // -1 where the layer is not cached
  int32_t num_passes = 1;

  int32_t num_groups() const { return static_cast<int32_t>(groups.size()); }
  int32_t num_units() const { return static_cast<int32_t>(units.size()); }
  // The unit that `layer` reads.
  UnitId source_unit(int32_t layer) const {
    return UnitId{unit_of_layer[layers.layers[layer].source]};
  }
};

PassPlan make_pass_plan(LayerPlan layers);

}  // namespace lckv
