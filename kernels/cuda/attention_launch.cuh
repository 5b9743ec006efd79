// Which kernel computes attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/attention_device.cuh"

namespace lckv {

struct AttentionLaunch {
  AttentionKernel kernel = nullptr;  // null: not for this head size
  int threads = kAttentionThreads;
  size_t shared_bytes = 0;
};

// Calls `choose` with the head size as a constant, where kernels are compiled for it.
template <class Choose>
AttentionLaunch with_head_dim(int32_t head_dim, const Choose& choose) {
  switch (head_dim) {
    case 16:
      return choose(std::integral_constant<int, 16>());
    case 32:
      return choose(std::integral_constant<int, 32>());
    case 48:
      return choose(std::integral_constant<int, 48>());
    case 64:
      return choose(std::integral_constant<int, 64>());
    case 80:
      return choose(std::integral_constant<int, 80>());
    case 96:
      return choose(std::integral_constant<int, 96>());
    case 128:
      return choose(std::integral_constant<int, 128>());
    case 256:
      return choose(std::integral_constant<int, 256>());
    default:
      return {};
  }
}

// For keys and values in bfloat16.
AttentionLaunch tensor_attention(int32_t head_dim, bool has_window);

}  // namespace lckv
