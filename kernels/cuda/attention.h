// Attention of the CUDA backend; see AttentionArgs for what is computed.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/memory.h"
#include "kernels/ops.h"

namespace lckv {

// Owner: the CUDA backend. Thread: its caller's. Has memory for the shares of split histories,
// max_share_bytes from the start: what serving takes must not depend on what is asked of it.
class CudaAttention {
 public:
  CudaAttention(const AttentionPlanOptions& options, UploadRing& uploads, cudaStream_t stream);
  void run(const AttentionArgs& args);

 private:
  const AttentionPlanOptions options_;
  UploadRing& uploads_;
  const cudaStream_t stream_;
  std::unique_ptr<CudaBuffer> shares_;
};

}  // namespace lckv
