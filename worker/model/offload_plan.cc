#include "worker/model/offload_plan.h"

#include <algorithm>

namespace lckv {
namespace {

// `count` layers, each in the middle of an equal share of the depth.
OffloadPlan spread(std::span<const uint64_t> layer_bytes, size_t count) {
  OffloadPlan plan;
  for (size_t i = 0; i < count; ++i) {
    const size_t layer = (2 * i + 1) * layer_bytes.size() / (2 * count);
    plan.layers.push_back(static_cast<int32_t>(layer));
    plan.host_bytes += layer_bytes[layer];
    plan.slot_bytes = std::max(plan.slot_bytes, layer_bytes[layer]);
  }
  return plan;
}

}  // namespace

OffloadPlan plan_offload(std::span<const uint64_t> layer_bytes, uint64_t bytes) {
  if (bytes == 0) return {};
  OffloadPlan plan;
  for (size_t count = kOffloadSlots + 1; count <= layer_bytes.size(); ++count) {
    plan = spread(layer_bytes, count);
    if (plan.host_bytes > kOffloadSlots * plan.slot_bytes && plan.freed_bytes() >= bytes) break;
  }
  return plan.host_bytes > kOffloadSlots * plan.slot_bytes ? plan : OffloadPlan{};
}

}  // namespace lckv
