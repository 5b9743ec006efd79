// OffloadedLayers: the matrices of layers that stay in host memory, and the two slots on the device
// that they are fetched into, each while the layers before it run.
//
// Which layer comes after which is not known: a step may leave ranges out, and what the next step
// runs is not planned yet. It is taken to be the one that came after it last time: steps are mostly
// like those before them, whatever ranges they run. A wrong guess costs time alone: the layer is
// fetched when it comes, and its products wait.
//
// Owner: the model that runs the layers, whose weights outlive this. Thread: the model's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "worker/model/offload_plan.h"

namespace lckv {

struct OffloadedLayer {
  int32_t layer = 0;
  std::vector<PackedWeight*> weights;  // of Ops::pack_on_host()
};

class OffloadedLayers {
 public:
  // Begins to fetch the first two.
  OffloadedLayers(std::vector<OffloadedLayer> layers, Ops& ops);

  // Around all that a layer calls of the Ops. Nothing happens at layers that are on the device.
  void enter(int32_t layer);
  void leave(int32_t layer);

  size_t slot_bytes() const { return slot_bytes_; }  // of both together

 private:
  static constexpr int32_t kNone = -1;
  int32_t index_of(int32_t layer) const;
  bool is_held(int32_t index) const { return held_[0] == index || held_[1] == index; }
  // Unless a slot has it already.
  void fetch(int32_t index, int32_t slot);

  const std::vector<OffloadedLayer> layers_;
  Ops& ops_;
  size_t slot_bytes_ = 0;
  std::array<std::unique_ptr<WeightSlot>, kOffloadSlots> slots_;
  // By index in layers_, as all that follows.
  std::vector<int32_t> next_;                                 // what came after each last time
  std::array<int32_t, kOffloadSlots> held_ = {kNone, kNone};  // by the slots
  int32_t last_ = 0;                                          // that was entered
};

}  // namespace lckv
