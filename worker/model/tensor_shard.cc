#include "worker/model/tensor_shard.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace lckv {
namespace {

struct Part {
  int64_t begin = 0;
  int64_t count = 0;
};

// Of `heads` that divide by the ranks, or the ranks by them.
Part part_of_heads(int64_t heads, TensorShard shard) {
  return {.begin = heads * shard.rank / shard.size,
          .count = std::max<int64_t>(heads / shard.size, 1)};
}

Part part_of_vocabulary(int64_t vocabulary, TensorShard shard) {
  const int64_t each = vocabulary_per_rank(static_cast<int32_t>(vocabulary), shard.size);
  const int64_t begin = std::min(each * shard.rank, vocabulary);
  return {.begin = begin, .count = std::min(each, vocabulary - begin)};
}

// Empty where the model can be cut into `size` parts.
std::string why_not(const ModelConfig& config, int32_t size) {
  if (config.num_heads % size != 0) {
    return absl::StrCat("num_attention_heads ", config.num_heads, " does not divide by it");
  }
  if (config.intermediate_size % size != 0) {
    return absl::StrCat("intermediate_size ", config.intermediate_size, " does not divide by it");
  }
  for (const LayerSpec& layer : config.layers.layers) {
    if (layer.kv_heads % size == 0 || size % layer.kv_heads == 0) continue;
    return absl::StrCat("num_key_value_heads ", layer.kv_heads,
                        " neither divides by it nor divides it");
  }
  return "";
}

}  // namespace

absl::Status check_tensor_parallel(const ModelConfig& config, int32_t size) {
  const std::string why = size < 1 ? "it is below 1" : why_not(config, size);
  if (why.empty()) return absl::OkStatus();
  std::vector<int32_t> valid;
  for (int32_t other = 1; other <= config.num_heads; ++other) {
    if (why_not(config, other).empty()) valid.push_back(other);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--tensor-parallel-size ", size, ": ", why,
                   "; valid for this model: ", absl::StrJoin(valid, ", ")));
}

LayerPlan shard_layers(LayerPlan layers, int32_t size) {
  for (LayerSpec& layer : layers.layers) layer.kv_heads = std::max(layer.kv_heads / size, 1);
  return layers;
}

TensorSlice slice_tensor(const TensorSpec& tensor, const ModelConfig& config, TensorShard shard) {
  TensorSlice slice{.rows = tensor.shape[0],
                    .columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1};
  const auto rows = [&slice](Part part, int64_t width) {
    slice.row = part.begin * width;
    slice.rows = part.count * width;
  };
  const auto columns = [&slice](Part part, int64_t width) {
    slice.column = part.begin * width;
    slice.columns = part.count * width;
  };
  const auto inner = [&] { return part_of_heads(config.intermediate_size, shard); };
  switch (tensor.split) {
    case TensorSplit::kNone:
      break;
    case TensorSplit::kHeadRows:
      rows(part_of_heads(config.num_heads, shard), config.head_dim);
      break;
    case TensorSplit::kKvHeadRows:
      rows(part_of_heads(config.num_kv_heads, shard), config.head_dim);
      break;
    case TensorSplit::kHeadColumns:
      columns(part_of_heads(config.num_heads, shard), config.head_dim);
      break;
    case TensorSplit::kInnerRows:
      rows(inner(), 1);
      break;
    case TensorSplit::kInnerColumns:
      columns(inner(), 1);
      break;
    case TensorSplit::kVocabularyRows:
      rows(part_of_vocabulary(config.vocabulary_size, shard), 1);
      break;
  }
  return slice;
}

bool is_first_with_kv_heads(int32_t num_kv_heads, TensorShard shard) {
  if (shard.size <= num_kv_heads) return true;
  return shard.rank % (shard.size / num_kv_heads) == 0;
}

}  // namespace lckv
