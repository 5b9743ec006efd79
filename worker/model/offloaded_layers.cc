#include "worker/model/offloaded_layers.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {

OffloadedLayers::OffloadedLayers(std::vector<OffloadedLayer> layers, Ops& ops)
    : layers_(std::move(layers)), ops_(ops) {
  if (layers_.empty()) return;
  size_t largest = 0;
  for (const OffloadedLayer& layer : layers_) {
    size_t bytes = 0;
    for (const PackedWeight* weight : layer.weights) bytes += weight->bytes();
    largest = std::max(largest, bytes);
  }
  slot_bytes_ = kOffloadSlots * largest;
  for (auto& slot : slots_) slot = ops_.allocate_weight_slot(largest);
  const auto count = static_cast<int32_t>(layers_.size());
  for (int32_t i = 0; i < count; ++i) next_.push_back((i + 1) % count);
  last_ = count - 1;
  for (int32_t slot = 0; slot < std::min(kOffloadSlots, count); ++slot) fetch(slot, slot);
}

int32_t OffloadedLayers::index_of(int32_t layer) const {
  const auto found = std::lower_bound(
      layers_.begin(), layers_.end(), layer,
      [](const OffloadedLayer& other, int32_t wanted) { return other.layer < wanted; });
  if (found == layers_.end() || found->layer != layer) return kNone;
  return static_cast<int32_t>(found - layers_.begin());
}

void OffloadedLayers::fetch(int32_t index, int32_t slot) {
  if (is_held(index)) return;
  held_[slot] = index;
  ops_.fetch(layers_[index].weights, *slots_[slot]);
}

void OffloadedLayers::enter(int32_t layer) {
  const int32_t index = index_of(layer);
  if (index == kNone) return;
  next_[last_] = index;
  last_ = index;
  // Where it was not expected, not over what is expected after it.
  fetch(index, held_[0] == next_[index] ? 1 : 0);
  fetch(next_[index], held_[0] == index ? 1 : 0);
}

void OffloadedLayers::leave(int32_t layer) {
  const int32_t index = index_of(layer);
  if (index == kNone) return;
  LCKV_CHECK(index == last_ && is_held(index));
  // The next is there or under way.
  fetch(next_[next_[index]], held_[0] == index ? 0 : 1);
}

}  // namespace lckv
