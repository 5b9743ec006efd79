// How much context a KV memory holds under a layer map: what `lckv plan` prints. Pure functions.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "worker/kv/layer_plan.h"

namespace lckv {

struct KvPlanOptions {
  uint64_t kv_cache_bytes = 0;
  int64_t block_size = 16;  // tokens per block of the largest slot
  int64_t length = 1;       // tokens of each sequence of the batch
  DType dtype = DType::kBFloat16;
};

struct KvPlan {
  int64_t num_cached_layers = 0;
  int64_t bytes_per_token = 0;
  int64_t num_blocks = 0;       // each of one cached layer
  int64_t capacity_tokens = 0;  // when all blocks are full
  int64_t batch = 0;  // sequences of `length` tokens at once, where no window lets blocks go
};

KvPlan plan_kv(const LayerPlan& layers, const KvPlanOptions& options);

// The same layers, each reading its own keys and values.
LayerPlan ordinary_layers(const LayerPlan& layers);

}  // namespace lckv
