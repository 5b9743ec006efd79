#include "kernels/cuda/launch.h"

#include "kernels/device_failure.h"

namespace lckv {

void check_cuda(cudaError_t error, const char* operation) {
  if (error == cudaSuccess) return;
  end_on_device_failure("CUDA", operation, cudaGetErrorString(error));
}

}  // namespace lckv
