// Weights that stay in the host's memory, and the places on the device that they take turns in.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/memory.h"
#include "kernels/ops.h"

namespace lckv {

// What is fetched begins at multiples of it, as what is allocated does: cuBLASLt chooses by it.
inline constexpr size_t kWeightAlignment = 256;

// Filled on the stream `copies`, read on `stream`. Two events keep them in order: a turn's copies
// begin behind what was called on `stream` before it, which may read the last turn's weights, and
// what reads this turn's waits for them. The host waits for neither.
//
// Owner: the model. Thread: its backend's.
class CudaWeightSlot final : public WeightSlot {
 public:
  CudaWeightSlot(size_t bytes, cudaStream_t stream, cudaStream_t copies);
  ~CudaWeightSlot() override;
  CudaWeightSlot(const CudaWeightSlot&) = delete;
  CudaWeightSlot& operator=(const CudaWeightSlot&) = delete;

  // A turn: begun, filled piece by piece, ended. What the turn before it left is gone.
  void begin_turn();
  // Where in the slot the piece will lie.
  size_t add(const PinnedMemory& piece);
  void end_turn();
  uint64_t turn() const { return turn_; }

  // The turn's weights, for operations called on `stream` from here on. It must be the last one.
  const std::byte* wait(uint64_t turn);

 private:
  const cudaStream_t stream_;
  const cudaStream_t copies_;
  CudaBuffer memory_;
  cudaEvent_t is_free_ = nullptr;  // on `stream`: nothing before it reads the slot later
  cudaEvent_t is_full_ = nullptr;  // on `copies`
  uint64_t turn_ = 0;
  size_t filled_ = 0;
  bool has_waited_ = false;  // `stream`, for this turn
};

}  // namespace lckv
