#include "worker/model/llama_weights.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/model/tensor_shard.h"

namespace lckv {
namespace {

class LlamaPacker {
 public:
  LlamaPacker(const ModelConfig& config, const PassPlan& passes, std::unique_ptr<WeightStore> store,
              const PackOptions& options)
      : config_(config), passes_(passes), options_(options) {
    weights_.store = std::move(store);
  }
  // Once.
  LlamaWeights pack_all();

 private:
  void pack_layer(int32_t layer);
  void pack_ends();
  WeightSource source(const std::string& name);
  WeightSource source(const TensorView& tensor);
  WeightSource contiguous(const TensorView& tensor);
  std::unique_ptr<PackedWeight> pack_head(const WeightSource& head);
  std::unique_ptr<PackedWeight> pack(std::initializer_list<WeightSource> sources);
  std::unique_ptr<PackedWeight> pack_on_host(std::initializer_list<WeightSource> sources);
  std::unique_ptr<DeviceBuffer> upload(std::initializer_list<WeightSource> sources);
  void forget_packed();

  const ModelConfig& config_;
  const PassPlan& passes_;
  const PackOptions& options_;
  LlamaWeights weights_;
  uint64_t done_bytes_ = 0;
  std::vector<const TensorView*> packed_;       // since forget_packed(), as the next
  std::vector<std::vector<std::byte>> copies_;  // of slices of columns
};

WeightSource LlamaPacker::source(const std::string& name) {
  const TensorView* tensor = weights_.store->find(name);
  LCKV_CHECK(tensor != nullptr);
  packed_.push_back(tensor);
  return source(*tensor);
}

WeightSource LlamaPacker::source(const TensorView& tensor) {
  LCKV_CHECK(tensor.shape.size() == 1 || tensor.shape.size() == 2);
  done_bytes_ += tensor.slice_bytes();
  const TensorSlice& slice = tensor.slice;
  if (tensor.shape.size() == 2 && slice.columns < tensor.shape[1]) return contiguous(tensor);
  const bool is_matrix = tensor.shape.size() == 2;
  const int64_t first = slice.row * slice.columns;
  return {.data = tensor.data + first * static_cast<int64_t>(dtype_bytes(tensor.dtype)),
          .dtype = tensor.dtype,
          .n = is_matrix ? slice.rows : 1,
          .k = is_matrix ? slice.columns : slice.rows};
}

WeightSource LlamaPacker::contiguous(const TensorView& tensor) {
  const TensorSlice& slice = tensor.slice;
  const size_t element = dtype_bytes(tensor.dtype);
  const size_t bytes = static_cast<size_t>(slice.columns) * element;
  std::vector<std::byte>& copy = copies_.emplace_back(static_cast<size_t>(slice.rows) * bytes);
  for (int64_t row = 0; row < slice.rows; ++row) {
    const int64_t from = (slice.row + row) * tensor.shape[1] + slice.column;
    std::memcpy(copy.data() + static_cast<size_t>(row) * bytes,
                tensor.data + static_cast<size_t>(from) * element, bytes);
  }
  return {.data = copy.data(), .dtype = tensor.dtype, .n = slice.rows, .k = slice.columns};
}

// The values are on the device now: their mapped memory may go.
void LlamaPacker::forget_packed() {
  for (const TensorView* tensor : packed_) weights_.store->forget(*tensor);
  packed_.clear();
  copies_.clear();
  if (options_.progress) options_.progress(done_bytes_);
}

std::unique_ptr<PackedWeight> LlamaPacker::pack(std::initializer_list<WeightSource> sources) {
  auto weight = options_.ops.pack({sources.begin(), sources.size()});
  weights_.bytes += weight->bytes();
  forget_packed();
  return weight;
}

// Of the last of weights_.offloaded.
std::unique_ptr<PackedWeight> LlamaPacker::pack_on_host(
    std::initializer_list<WeightSource> sources) {
  auto weight = options_.ops.pack_on_host({sources.begin(), sources.size()});
  weights_.offloaded.back().weights.push_back(weight.get());
  forget_packed();
  return weight;
}

std::unique_ptr<DeviceBuffer> LlamaPacker::upload(std::initializer_list<WeightSource> sources) {
  auto vector = options_.ops.upload({sources.begin(), sources.size()});
  weights_.bytes += vector->bytes();
  forget_packed();
  return vector;
}

// The last ranks' rows beyond the vocabulary are zeros: all ranks gather equally many logits.
std::unique_ptr<PackedWeight> LlamaPacker::pack_head(const WeightSource& head) {
  const int64_t rows = vocabulary_per_rank(config_.vocabulary_size, weights_.store->shard().size);
  if (head.n == rows) return pack({head});
  WeightSource beyond{.dtype = head.dtype, .n = rows - head.n, .k = head.k};
  const size_t elements = static_cast<size_t>(beyond.n) * static_cast<size_t>(beyond.k);
  beyond.data = copies_.emplace_back(elements * dtype_bytes(head.dtype)).data();
  return head.n == 0 ? pack({beyond}) : pack({head, beyond});
}

void LlamaPacker::pack_layer(int32_t layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = absl::StrCat(prefix, "self_attn.");
  const std::string mlp = absl::StrCat(prefix, "mlp.");
  const auto weight = [this](const std::string& at, const char* name) {
    return source(absl::StrCat(at, name, ".weight"));
  };
  const auto bias = [this, &attention](const char* name) {
    return source(absl::StrCat(attention, name, ".bias"));
  };
  const bool is_cached = passes_.unit_of_layer[layer] >= 0;
  const std::vector<int32_t>& offloaded = options_.offload.layers;
  const bool is_offloaded = std::binary_search(offloaded.begin(), offloaded.end(), layer);
  if (is_offloaded) weights_.offloaded.push_back({.layer = layer, .weights = {}});
  const auto pack_matrix = is_offloaded ? &LlamaPacker::pack_on_host : &LlamaPacker::pack;
  LlamaLayer& loaded = weights_.layers.emplace_back();
  loaded.attention_norm = upload({weight(prefix, "input_layernorm")});
  loaded.q = (this->*pack_matrix)({weight(attention, "q_proj")});
  if (is_cached) {
    const auto pack_kv = is_guessed(passes_, layer) ? &LlamaPacker::pack : pack_matrix;
    loaded.kv = (this->*pack_kv)({weight(attention, "k_proj"), weight(attention, "v_proj")});
    const LayerSpec& spec = passes_.layers.layers[layer];
    LCKV_CHECK(loaded.kv->n() == 2 * spec.kv_heads * spec.head_dim);
  }
  loaded.o = (this->*pack_matrix)({weight(attention, "o_proj")});
  if (config_.attention_bias) {
    loaded.q_bias = upload({bias("q_proj")});
    if (is_cached) loaded.kv_bias = upload({bias("k_proj"), bias("v_proj")});
    loaded.o_bias = upload({bias("o_proj")});
  }
  loaded.mlp_norm = upload({weight(prefix, "post_attention_layernorm")});
  loaded.gate_up = (this->*pack_matrix)({weight(mlp, "gate_proj"), weight(mlp, "up_proj")});
  loaded.down = (this->*pack_matrix)({weight(mlp, "down_proj")});
}

// What takes ids in and gives logits out.
void LlamaPacker::pack_ends() {
  const bool is_tied = config_.tie_word_embeddings;
  const TensorView* tensor = weights_.store->find("model.embed_tokens.weight");
  LCKV_CHECK(tensor != nullptr);
  const WeightSource embedding = source(*tensor);
  weights_.head = pack_head(is_tied ? embedding : source("lm_head.weight"));
  weights_.embedding = options_.ops.pack_table(embedding, is_tied ? weights_.head.get() : nullptr);
  weights_.bytes += weights_.embedding->bytes();
  if (!weights_.embedding->reads_source()) packed_.push_back(tensor);
  forget_packed();
}

LlamaWeights LlamaPacker::pack_all() {
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) pack_layer(layer);
  weights_.final_norm = upload({source("model.norm.weight")});
  pack_ends();
  return std::move(weights_);
}

}  // namespace

bool is_guessed(const PassPlan& passes, int32_t layer) {
  return std::any_of(passes.groups.begin(), passes.groups.end(), [&](const CyclicGroup& group) {
    return std::any_of(group.units_read_upward.begin(), group.units_read_upward.end(),
                       [&](UnitId unit) { return passes.units[raw(unit)].layer == layer; });
  });
}

LlamaWeights pack_llama(const ModelConfig& config, const PassPlan& passes,
                        std::unique_ptr<WeightStore> store, const PackOptions& options) {
  return LlamaPacker(config, passes, std::move(store), options).pack_all();
}

}  // namespace lckv
