// Beside attention_tensor.cu, so that the two are compiled at once: between them they take longer
// than all other kernels.
#include "kernels/cuda/attention_tensor.cuh"

namespace lckv {

template AttentionLaunch tensor_attention<Float16>(int32_t head_dim, bool has_window);

}  // namespace lckv
