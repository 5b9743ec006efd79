// Starts kernels and looks at what the CUDA runtime returns.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace lckv {

// An error of the runtime while a model is served leaves the device in no state to go on in: the
// process ends with one line that names the operation, and with it the replica.
void check_cuda(cudaError_t error, const char* operation);

struct LaunchShape {
  dim3 grid;
  int threads = 0;
};

// An empty grid starts nothing.
template <class... Parameters, class... Arguments>
void launch(const char* operation, cudaStream_t stream, const LaunchShape& shape,
            void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), operation);
}

}  // namespace lckv
