// OffloadPlan: which layers' matrices stay in host memory, so that the device has room for more.
// Pure data and pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lckv {

// On the device: one holds the layer that runs, the other is filled with the next.
inline constexpr int32_t kOffloadSlots = 2;

struct OffloadPlan {
  std::vector<int32_t> layers;  // ascending; none: all weights are on the device
  uint64_t host_bytes = 0;      // of their matrices
  uint64_t slot_bytes = 0;      // of the largest of them
  // What the device has to hold less.
  uint64_t freed_bytes() const { return host_bytes - kOffloadSlots * slot_bytes; }
};

// As few layers as free `bytes` of the device's memory, or all where these free less; none where
// even they free nothing, as of two layers, which fill the slots. `layer_bytes`: of each layer's
// matrices.
//
// They are spread evenly over the depth. A layer's copy takes far longer than the layer, and hides
// behind those that run since the last copy was needed: so each is to have equally many.
OffloadPlan plan_offload(std::span<const uint64_t> layer_bytes, uint64_t bytes);

}  // namespace lckv
