// Starts kernels and looks at what the CUDA runtime returns.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace lckv {

// An error of the runtime while a model is served leaves the device in no state to go on in: the
// process ends with one line that names the operation, and with it the replica.
void check_cuda(cudaError_t error, const char* operation);

struct LaunchShape {
  dim3 grid;
  int threads = 0;
  size_t shared_bytes = 0;      // besides what the kernel declares
  bool is_cooperative = false;  // all blocks run at once, or the launch fails
};

// More of it has to be asked for, kernel by kernel.
inline constexpr size_t kSharedBytesUnasked = size_t{48} << 10;

// An empty grid starts nothing.
template <class... Parameters, class... Arguments>
void launch(const char* operation, cudaStream_t stream, const LaunchShape& shape,
            void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = shape.is_cooperative ? 1 : 0;
  if (shape.shared_bytes > kSharedBytesUnasked) {
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shape.shared_bytes)),
               operation);
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), operation);
}

}  // namespace lckv
