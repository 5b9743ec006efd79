#include "kernels/cuda/attention_tensor.cuh"

namespace lckv {

template AttentionLaunch tensor_attention<BFloat16>(int32_t head_dim, bool has_window);

}  // namespace lckv
