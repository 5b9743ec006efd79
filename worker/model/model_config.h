// ModelConfig: a checkpoint's config.json and generation_config.json, checked and normalised.
//
// Pure data and pure functions. What is accepted is bounded, so that nothing computed from a
// ModelConfig overflows and no allocation sized by it is absurd.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/dtype.h"
#include "kernels/ops.h"
#include "worker/kv/layer_plan.h"

namespace lckv {

// What generation_config.json says; absent values keep the API's defaults.
struct GenerationDefaults {
  std::optional<float> temperature;  // 0 where do_sample is false
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<uint32_t> max_new_tokens;
};

struct ModelConfig {
  std::string architecture;  // "LCKVLlamaForCausalLM"
  std::string model_type;    // "lckv-llama": the notation of the layer map
  int32_t vocabulary_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t max_position_embeddings = 0;
  float rms_norm_eps = 0.0F;
  RopeOptions rope;
  bool tie_word_embeddings = false;
  bool attention_bias = false;         // of q, k, v and o
  std::vector<int32_t> eos_token_ids;  // of generation_config.json where it has any; may be empty
  std::optional<int32_t> bos_token_id;
  std::optional<DType> torch_dtype;
  GenerationDefaults generation;
  LayerPlan layers;
};

// Errors: InvalidArgument, one line that begins with the file's name and the key
// ("config.json: num_hidden_layers: ..."). `generation_config` is empty where there is no such
// file.
absl::StatusOr<ModelConfig> parse_model_config(absl::string_view config,
                                               absl::string_view generation_config);

// Along what the ranks of a tensor-parallel replica cut a tensor (worker/model/tensor_shard.h).
enum class TensorSplit : uint8_t {
  kNone,  // every rank holds all of it
  kHeadRows,
  kKvHeadRows,
  kHeadColumns,
  kInnerRows,
  kInnerColumns,
  kVocabularyRows,
};

// A tensor that a checkpoint of this config has, under its Hugging Face name.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  TensorSplit split = TensorSplit::kNone;
  int64_t num_elements() const;
};

// Embedding, then layer by layer, then norm and (untied) head. k_proj and v_proj of cached layers
// only.
std::vector<TensorSpec> expected_tensors(const ModelConfig& config);

int64_t num_parameters(const ModelConfig& config);
inline int64_t weight_bytes(const ModelConfig& config, DType dtype) {
  return num_parameters(config) * static_cast<int64_t>(dtype_bytes(dtype));
}
// K and V of one token over all cached layers, without a window's savings.
int64_t kv_bytes_per_token(const LayerPlan& layers, DType dtype);

}  // namespace lckv
