#include "kernels/cuda/launch.h"

#include <cstdio>
#include <cstdlib>

namespace lckv {

void check_cuda(cudaError_t error, const char* operation) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA error in %s: %s\n", operation, cudaGetErrorString(error));
  std::_Exit(1);
}

}  // namespace lckv
