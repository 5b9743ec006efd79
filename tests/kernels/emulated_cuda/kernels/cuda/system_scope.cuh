// In place of the header of this path below the source root, whose comments hold for it too.
#pragma once

#include <atomic>
#include <cstdint>

#include "tests/kernels/emulated_cuda/cuda_runtime.h"

namespace lckv {

inline uint64_t load_acquire_system(const uint64_t* at) {
  const uint64_t value =
      std::atomic_ref<uint64_t>(const_cast<uint64_t&>(*at)).load(std::memory_order_acquire);
  emulated_cuda::hold_up();
  return value;
}

inline void store_release_system(uint64_t* at, uint64_t value) {
  std::atomic_ref<uint64_t>(*at).store(value, std::memory_order_release);
  emulated_cuda::has_stored();
}

}  // namespace lckv
