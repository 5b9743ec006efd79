// TensorShard: which part of every tensor one rank of a tensor-parallel replica holds. Pure data
// and pure functions.
//
// Query heads, the MLP's inner width and the vocabulary are cut into equal parts, one per rank (the
// last parts of a vocabulary may be smaller). KV heads are cut as well; where there are fewer than
// ranks, each is held by as many consecutive ranks as share it. Norms are held by all. The scheme
// is Megatron-LM's (Shoeybi et al., 2019).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "worker/kv/layer_plan.h"
#include "worker/model/model_config.h"

namespace lckv {

struct TensorShard {
  int32_t rank = 0;
  int32_t size = 1;
};

// Of a tensor [rows, columns]; a vector has one column.
struct TensorSlice {
  int64_t row = 0;  // the first
  int64_t rows = 0;
  int64_t column = 0;
  int64_t columns = 0;
  int64_t num_elements() const { return rows * columns; }
};

// Errors: InvalidArgument where the model cannot be cut into that many parts: one line that names
// the flag, what does not divide and the sizes that would do.
absl::Status check_tensor_parallel(const ModelConfig& config, int32_t size);

// The layers as one rank has them: with its number of KV heads. Of a size that was checked.
LayerPlan shard_layers(LayerPlan layers, int32_t size);

// The rank's part of a tensor; no rows where a vocabulary has too few for it.
TensorSlice slice_tensor(const TensorSpec& tensor, const ModelConfig& config, TensorShard shard);

// Ids per rank; the last ranks' may lie beyond the vocabulary.
inline int32_t vocabulary_per_rank(int32_t vocabulary, int32_t size) {
  return (vocabulary + size - 1) / size;
}

// Whether the rank is the first that holds its KV heads: sums over heads count each once.
bool is_first_with_kv_heads(int32_t num_kv_heads, TensorShard shard);

}  // namespace lckv
