#include "kernels/cuda/attention_tensor.cuh"

#include "kernels/cuda/attention_launch.cuh"

namespace lckv {

AttentionLaunch tensor_attention(int32_t head_dim, bool has_window) {
  return with_head_dim(head_dim, [=](auto size) -> AttentionLaunch {
    return {.kernel = has_window ? tensor_attention_kernel<size, WindowMask>
                                 : tensor_attention_kernel<size, CausalMask>,
            .threads = TensorShape<size>::kThreads,
            .shared_bytes = sizeof(TensorShared<size>)};
  });
}

}  // namespace lckv
