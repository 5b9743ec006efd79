// Which kernel computes attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/number_types.cuh"

namespace lckv {

struct AttentionLaunch {
  AttentionKernel kernel = nullptr;  // null: not for this head size
  int threads = kAttentionThreads;
  size_t shared_bytes = 0;
};

// Calls `choose` with the head size as a constant, where kernels are compiled for it.
template <size_t kAt = 0, class Choose>
AttentionLaunch with_head_dim(int32_t head_dim, const Choose& choose) {
  if constexpr (kAt < kAttentionHeadDims.size()) {
    constexpr int kHeadDim = kAttentionHeadDims[kAt];
    if (head_dim == kHeadDim) return choose(std::integral_constant<int, kHeadDim>());
    return with_head_dim<kAt + 1>(head_dim, choose);
  } else {
    return {};
  }
}

// For keys and values of 16 bits. Compiled in attention_tensor.cu and attention_tensor_float16.cu.
template <class Value>
AttentionLaunch tensor_attention(int32_t head_dim, bool has_window);

}  // namespace lckv
