// Attention of the CUDA backend; see AttentionArgs for what is computed.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/memory.h"
#include "kernels/ops.h"

namespace lckv {

// Owner: the CUDA backend. Thread: its caller's. Has memory for the shares of split histories,
// max_share_bytes from the start: what serving takes must not depend on what is asked of it.
class CudaAttention {
 public:
  CudaAttention(const AttentionPlanOptions& options, UploadRing& uploads, cudaStream_t stream);
  ~CudaAttention();
  void run(const AttentionArgs& args);

  // In a batch (Ops::begin_batch) calls that read the same rows in the same way share a plan. Of
  // condensed layers that is nearly all.
  void begin_batch() { in_batch_ = true; }
  void end_batch();

 private:
  struct SentPlan;
  struct SentPlans;
  SentPlan send(const AttentionArgs& args, const AttentionPlan& plan);
  const SentPlans* find_sent(const AttentionArgs& args) const;
  void launch_plan(const AttentionArgs& args, const SentPlan& plan);

  const AttentionPlanOptions options_;
  UploadRing& uploads_;
  const cudaStream_t stream_;
  std::unique_ptr<CudaBuffer> shares_;
  bool in_batch_ = false;
  std::vector<SentPlans> sent_;  // in this batch
};

}  // namespace lckv
