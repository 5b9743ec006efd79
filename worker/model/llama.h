// LlamaModel: the Llama family over any layer map: RMSNorm, rotary positions, grouped queries,
// SwiGLU.
//
// The layer maths is Hugging Face's LlamaForCausalLM; which layer reads whose KV is the PassPlan's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/collectives.h"
#include "kernels/ops.h"
#include "worker/kv/pass_plan.h"
#include "worker/model/model.h"
#include "worker/model/model_config.h"
#include "worker/model/offload_plan.h"
#include "worker/model/weight_store.h"

namespace lckv {

struct LlamaOptions {
  int32_t max_rows = 0;       // of a batch: what buffers are sized for
  int32_t max_positions = 0;  // of a sequence
  OffloadPlan offload;
  std::function<void(uint64_t done_bytes)> progress;  // of WeightStore::total_bytes()
  // The ranks that share the model, each with its shard of the weights; null: this one is alone.
  // They outlive the model.
  Collectives* ranks = nullptr;
};

// What of a rank's layers has to stay in host memory for its device to have `bytes` more: their
// matrices, but for those that walks' first guesses are made with. `passes` are the rank's.
OffloadPlan plan_llama_offload(const ModelConfig& config, const PassPlan& passes, int32_t num_ranks,
                               DType dtype, uint64_t bytes);

// Packs the weights for the device; mapped ones leave memory as they are packed, but for an
// embedding table that the Ops read where it lies. `passes` are the rank's: of shard_layers().
// `ops` must outlive the model. Errors: ResourceExhausted where memory cannot be had.
absl::StatusOr<std::unique_ptr<Model>> load_llama(const LlamaOptions& options,
                                                  const ModelConfig& config, PassPlan passes,
                                                  std::unique_ptr<WeightStore> weights, Ops& ops);

}  // namespace lckv
