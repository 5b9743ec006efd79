// Attention of the CUDA backend; see AttentionArgs for what is computed.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/memory.h"
#include "kernels/ops.h"

namespace lckv {

// The arrays of a plan, and how many shares its rows have.
struct PlanRoom {
  PlanSize size;
  int32_t num_partials = 0;
};

// A plan of one call for rows from 0 on, wherever it is brought to.
struct PlacedPlan {
  AttentionArgs args;
  PlanRoom room;
  const std::byte* at = nullptr;  // on the device
};

// Writes the plan's arrays, each into its room; what is left there has nothing done.
void write_plan(const AttentionPlan& plan, const PlanRoom& room, std::byte* to);

// Owner: the CUDA backend. Thread: its caller's. Has memory for the shares of split histories,
// max_share_bytes from the start: what serving takes must not depend on what is asked of it.
class CudaAttention {
 public:
  CudaAttention(const AttentionPlanOptions& options, UploadRing& uploads, cudaStream_t stream);
  ~CudaAttention();
  void run(const AttentionArgs& args);

  // In a batch (Ops::begin_batch) calls that read the same rows in the same way share a plan. Of
  // condensed layers that is nearly all.
  // `placed`: of all calls that have plans of their own in the batch, which somebody else brings to
  // their places.
  void begin_batch(std::span<const PlacedPlan> placed = {});
  void end_batch();
  // The calls of the batch so far that have plans of their own, each once.
  std::vector<AttentionArgs> planned() const;

  // The only plan for the call, if one will do.
  std::optional<AttentionPlan> plan_alone(const AttentionArgs& args) const;
  // Whether a plan of this room can be carried out with the memory that there is for shares.
  bool has_shares(const AttentionArgs& args, const PlanRoom& room) const;
  // Of memory that a call may make larger, and so move.
  size_t scratch_bytes() const { return shares_ == nullptr ? 0 : shares_->bytes(); }

 private:
  struct SentPlan;
  struct SentPlans;
  static SentPlan place(const AttentionArgs& args, const PlanRoom& room, const std::byte* at,
                        int32_t first_row);
  const SentPlans* find_sent(const AttentionArgs& args) const;
  void launch_plan(const AttentionArgs& args, const SentPlan& plan);

  const AttentionPlanOptions options_;
  UploadRing& uploads_;
  const cudaStream_t stream_;
  std::unique_ptr<CudaBuffer> shares_;
  bool in_batch_ = false;
  bool is_placed_ = false;
  std::vector<SentPlans> sent_;  // in this batch
};

}  // namespace lckv
