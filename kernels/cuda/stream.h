// The order in which everything on the device happens.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

namespace lckv {

class Stream {
 public:
  Stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "opening a stream");
  }
  ~Stream() { check_cuda(cudaStreamDestroy(stream_), "closing a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Whose operations other operations of the same device must come after.
class StreamOwner {
 public:
  virtual ~StreamOwner() = default;
  virtual cudaStream_t stream() const = 0;
};

}  // namespace lckv
