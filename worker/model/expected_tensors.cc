#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/model/model_config.h"

namespace lckv {
namespace {

struct MatrixShape {
  int64_t rows = 0;
  int64_t columns = 0;
  TensorSplit split = TensorSplit::kNone;
};

TensorSpec matrix(std::string name, const MatrixShape& shape) {
  return {std::move(name), {shape.rows, shape.columns}, shape.split};
}

void append_attention(const ModelConfig& config, const std::string& prefix, bool is_cached,
                      std::vector<TensorSpec>& tensors) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_dim;
  const auto projection = [&](absl::string_view name, const MatrixShape& shape) {
    tensors.push_back(matrix(absl::StrCat(prefix, name, ".weight"), shape));
    if (!config.attention_bias) return;
    // What is cut by columns has its bias added once, to the sum.
    const bool by_columns = shape.split == TensorSplit::kHeadColumns;
    tensors.push_back({absl::StrCat(prefix, name, ".bias"),
                       {shape.rows},
                       by_columns ? TensorSplit::kNone : shape.split});
  };
  projection("q_proj", {q, hidden, TensorSplit::kHeadRows});
  if (is_cached) {
    projection("k_proj", {kv, hidden, TensorSplit::kKvHeadRows});
    projection("v_proj", {kv, hidden, TensorSplit::kKvHeadRows});
  }
  projection("o_proj", {hidden, q, TensorSplit::kHeadColumns});
}

}  // namespace

int64_t TensorSpec::num_elements() const {
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  return elements;
}

std::vector<TensorSpec> expected_tensors(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  std::vector<TensorSpec> tensors;
  const MatrixShape vocabulary{config.vocabulary_size, hidden, TensorSplit::kVocabularyRows};
  tensors.push_back(matrix("model.embed_tokens.weight", vocabulary));
  std::vector<bool> is_cached(config.num_layers);
  for (const int32_t layer : config.layers.cached_layers()) is_cached[layer] = true;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors.push_back({prefix + "input_layernorm.weight", {hidden}});
    append_attention(config, prefix + "self_attn.", is_cached[layer], tensors);
    tensors.push_back({prefix + "post_attention_layernorm.weight", {hidden}});
    const MatrixShape widening{inner, hidden, TensorSplit::kInnerRows};
    tensors.push_back(matrix(prefix + "mlp.gate_proj.weight", widening));
    tensors.push_back(matrix(prefix + "mlp.up_proj.weight", widening));
    tensors.push_back(
        matrix(prefix + "mlp.down_proj.weight", {hidden, inner, TensorSplit::kInnerColumns}));
  }
  tensors.push_back({"model.norm.weight", {hidden}});
  if (!config.tie_word_embeddings) {
    tensors.push_back(matrix("lm_head.weight", vocabulary));
  }
  return tensors;
}

int64_t num_parameters(const ModelConfig& config) {
  int64_t parameters = 0;
  for (const TensorSpec& tensor : expected_tensors(config)) parameters += tensor.num_elements();
  return parameters;
}

int64_t kv_bytes_per_token(const LayerPlan& layers, DType dtype) {
  int64_t bytes = 0;
  for (const int32_t layer : layers.cached_layers()) {
    const LayerSpec& spec = layers.layers[layer];
    bytes += 2 * int64_t{spec.kv_heads} * spec.head_dim * static_cast<int64_t>(dtype_bytes(dtype));
  }
  return bytes;
}

}  // namespace lckv
