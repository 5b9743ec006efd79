#include "worker/model/llama.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace lckv {
namespace {

struct LlamaLayer {
  std::unique_ptr<DeviceBuffer> attention_norm;
  std::unique_ptr<PackedWeight> q;
  std::unique_ptr<PackedWeight> kv;  // [k; v], apart from q: a warm guess needs them alone; or null
  std::unique_ptr<PackedWeight> o;
  std::unique_ptr<DeviceBuffer> q_bias;  // null where there is none, as the next two
  std::unique_ptr<DeviceBuffer> kv_bias;
  std::unique_ptr<DeviceBuffer> o_bias;
  std::unique_ptr<DeviceBuffer> mlp_norm;
  std::unique_ptr<PackedWeight> gate_up;
  std::unique_ptr<PackedWeight> down;
};

float* floats(const std::unique_ptr<DeviceBuffer>& buffer) {
  return buffer == nullptr ? nullptr : buffer->floats();
}

class LlamaModel : public Model {
 public:
  LlamaModel(const LlamaOptions& options, const ModelConfig& config, PassPlan passes,
             std::unique_ptr<WeightStore> weights, Ops& ops)
      : max_rows_(options.max_rows),
        config_(config),
        passes_(std::move(passes)),
        ops_(ops),
        weights_(std::move(weights)) {
    LCKV_CHECK(options.max_rows > 0 && options.max_positions > 0);
    load(options);
    allocate();
  }

  int32_t hidden_size() const override { return config_.hidden_size; }
  int32_t vocabulary_size() const override { return config_.vocabulary_size; }
  int32_t max_rows() const override { return max_rows_; }
  size_t weight_bytes() const override { return weight_bytes_; }

  void embed(std::span<const int32_t> ids, float* hidden) override {
    ops_.embed(embedding_, ids, hidden);
  }
  void run(const RangeBatch& batch) override;
  void guess(const RangeBatch& batch) override;
  void logits(const float* hidden, int64_t rows, float* logits) override;

 private:
  void load(const LlamaOptions& options);
  void load_layer(int32_t layer);
  void allocate();
  WeightSource source(const std::string& name, bool is_kept = false);
  std::unique_ptr<PackedWeight> pack(std::initializer_list<WeightSource> sources);
  std::unique_ptr<DeviceBuffer> upload(std::initializer_list<WeightSource> sources);
  void forget_packed();

  void attend(int32_t layer, const RangeBatch& batch);
  void project_kv(int32_t layer, const RangeBatch& batch);
  void feed_forward(int32_t layer, const RangeBatch& batch);
  LayerRange layers_of(int32_t range) const {
    return range % 2 == 0 ? passes_.ordinary[range / 2] : passes_.groups[range / 2].layers;
  }
  int32_t kv_width(int32_t layer) const {
    const LayerSpec& spec = passes_.layers.layers[layer];
    return spec.kv_heads * spec.head_dim;
  }

  const int32_t max_rows_;
  const ModelConfig config_;
  const PassPlan passes_;
  Ops& ops_;
  const std::unique_ptr<WeightStore> weights_;
  std::function<void(uint64_t)> progress_;
  uint64_t done_bytes_ = 0;
  std::vector<const TensorView*> packed_;  // since forget_packed()
  size_t weight_bytes_ = 0;

  WeightSource embedding_;
  std::vector<LlamaLayer> layers_;
  std::unique_ptr<DeviceBuffer> final_norm_;
  std::unique_ptr<PackedWeight> head_;
  std::unique_ptr<DeviceBuffer> rope_;

  // Activations, [max_rows, ...] each.
  std::unique_ptr<DeviceBuffer> normed_;    // hidden
  std::unique_ptr<DeviceBuffer> q_;         // heads * head_dim
  std::unique_ptr<DeviceBuffer> kv_;        // k, then v
  std::unique_ptr<DeviceBuffer> attended_;  // heads * head_dim
  std::unique_ptr<DeviceBuffer> gate_up_;   // 2 * intermediate
  std::unique_ptr<DeviceBuffer> inner_;     // intermediate
};

WeightSource LlamaModel::source(const std::string& name, bool is_kept) {
  const TensorView* tensor = weights_->find(name);
  LCKV_CHECK(tensor != nullptr);
  LCKV_CHECK(tensor->shape.size() == 1 || tensor->shape.size() == 2);
  if (!is_kept) packed_.push_back(tensor);
  done_bytes_ += tensor->bytes;
  const bool is_matrix = tensor->shape.size() == 2;
  return {.data = tensor->data,
          .dtype = tensor->dtype,
          .n = is_matrix ? tensor->shape[0] : 1,
          .k = is_matrix ? tensor->shape[1] : tensor->shape[0]};
}

// The values are on the device now: their mapped memory may go.
void LlamaModel::forget_packed() {
  for (const TensorView* tensor : packed_) weights_->forget(*tensor);
  packed_.clear();
  if (progress_) progress_(done_bytes_);
}

std::unique_ptr<PackedWeight> LlamaModel::pack(std::initializer_list<WeightSource> sources) {
  auto weight = ops_.pack({sources.begin(), sources.size()});
  weight_bytes_ += weight->bytes();
  forget_packed();
  return weight;
}

std::unique_ptr<DeviceBuffer> LlamaModel::upload(std::initializer_list<WeightSource> sources) {
  auto vector = ops_.upload({sources.begin(), sources.size()});
  weight_bytes_ += vector->bytes();
  forget_packed();
  return vector;
}

void LlamaModel::load_layer(int32_t layer) {
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
  LlamaLayer& loaded = layers_.emplace_back();
  loaded.attention_norm = upload({weight(prefix, "input_layernorm")});
  loaded.q = pack({weight(attention, "q_proj")});
  if (is_cached) {
    loaded.kv = pack({weight(attention, "k_proj"), weight(attention, "v_proj")});
    LCKV_CHECK(loaded.kv->n() == 2 * kv_width(layer));
  }
  loaded.o = pack({weight(attention, "o_proj")});
  if (config_.attention_bias) {
    loaded.q_bias = upload({bias("q_proj")});
    if (is_cached) loaded.kv_bias = upload({bias("k_proj"), bias("v_proj")});
    loaded.o_bias = upload({bias("o_proj")});
  }
  loaded.mlp_norm = upload({weight(prefix, "post_attention_layernorm")});
  loaded.gate_up = pack({weight(mlp, "gate_proj"), weight(mlp, "up_proj")});
  loaded.down = pack({weight(mlp, "down_proj")});
}

void LlamaModel::load(const LlamaOptions& options) {
  progress_ = options.progress;
  embedding_ = source("model.embed_tokens.weight", /*is_kept=*/true);
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) load_layer(layer);
  final_norm_ = upload({source("model.norm.weight")});
  head_ = config_.tie_word_embeddings ? pack({embedding_}) : pack({source("lm_head.weight")});
  rope_ = ops_.rope_table(config_.rope, options.max_positions);
  progress_ = nullptr;
}

void LlamaModel::allocate() {
  const int32_t q_width = config_.num_heads * config_.head_dim;
  int32_t kv_max = 0;
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    kv_max = std::max(kv_max, 2 * kv_width(layer));
  }
  const auto rows_of = [this](int64_t width) {
    return ops_.allocate(static_cast<size_t>(max_rows_) * width * sizeof(float));
  };
  normed_ = rows_of(config_.hidden_size);
  q_ = rows_of(q_width);
  kv_ = rows_of(kv_max);
  attended_ = rows_of(q_width);
  gate_up_ = rows_of(2 * static_cast<int64_t>(config_.intermediate_size));
  inner_ = rows_of(config_.intermediate_size);
}

void LlamaModel::run(const RangeBatch& batch) {
  LCKV_CHECK(batch.num_rows() > 0 && batch.num_rows() <= max_rows_);
  LCKV_CHECK(batch.range % 2 == 0 || batch.staged_rows.size() == batch.positions.size());
  const LayerRange range = layers_of(batch.range);
  for (int32_t layer = range.begin; layer < range.end; ++layer) {
    attend(layer, batch);
    feed_forward(layer, batch);
  }
}

// kv_ = keys, rotated, and values of normed_.
void LlamaModel::project_kv(int32_t layer, const RangeBatch& batch) {
  const LlamaLayer& weights = layers_[layer];
  const LayerSpec& spec = passes_.layers.layers[layer];
  ops_.matmul(*weights.kv, normed_->floats(), batch.num_rows(), kv_->floats(),
              floats(weights.kv_bias), /*accumulate=*/false);
  ops_.rope(kv_->floats(), 2 * kv_width(layer), batch.positions, spec.kv_heads, spec.head_dim,
            *rope_);
}

void LlamaModel::attend(int32_t layer, const RangeBatch& batch) {
  const LlamaLayer& weights = layers_[layer];
  const LayerSpec& spec = passes_.layers.layers[layer];
  const int64_t rows = batch.num_rows();
  const bool in_group = batch.range % 2 == 1;
  ops_.rms_norm(batch.hidden, weights.attention_norm->floats(), config_.rms_norm_eps, rows,
                config_.hidden_size, normed_->floats());
  ops_.matmul(*weights.q, normed_->floats(), rows, q_->floats(), floats(weights.q_bias), false);
  ops_.rope(q_->floats(), config_.num_heads * config_.head_dim, batch.positions, config_.num_heads,
            config_.head_dim, *rope_);

  if (const int32_t unit = passes_.unit_of_layer[layer]; unit >= 0) {
    project_kv(layer, batch);
    const UnitRows& own = batch.units[unit];
    const float* k = kv_->floats();
    const float* v = k + kv_width(layer);
    const int64_t stride = 2 * kv_width(layer);
    if (in_group) {
      ops_.stage_kv(k, v, stride, own.layout, batch.staged_rows, own.fresh);
    } else {
      ops_.append_kv(k, v, stride, own.layout, own.blocks, own.slots);
    }
  }

  const bool is_cyclic = spec.source > layer;
  const UnitRows& read = batch.units[raw(passes_.source_unit(layer))];
  AttentionArgs args{.q = q_->floats(),
                     .out = attended_->floats(),
                     .positions = batch.positions.data(),
                     .num_heads = config_.num_heads,
                     .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
                     .strict = spec.self_excluding,
                     .window = spec.window,
                     .num_sinks = spec.num_sinks,
                     .official_decode = is_cyclic ? batch.official_decode : nullptr,
                     .layout = read.layout,
                     .staged = is_cyclic ? read.read : read.fresh,
                     .segments = read.segments};
  ops_.attention(args);
  ops_.matmul(*weights.o, attended_->floats(), rows, batch.hidden, floats(weights.o_bias), true);
}

void LlamaModel::feed_forward(int32_t layer, const RangeBatch& batch) {
  const LlamaLayer& weights = layers_[layer];
  const int64_t rows = batch.num_rows();
  ops_.rms_norm(batch.hidden, weights.mlp_norm->floats(), config_.rms_norm_eps, rows,
                config_.hidden_size, normed_->floats());
  ops_.matmul(*weights.gate_up, normed_->floats(), rows, gate_up_->floats(), nullptr, false);
  ops_.silu_mul(gate_up_->floats(), rows, config_.intermediate_size, inner_->floats());
  ops_.matmul(*weights.down, inner_->floats(), rows, batch.hidden, nullptr, true);
}

void LlamaModel::guess(const RangeBatch& batch) {
  LCKV_CHECK(batch.range % 2 == 1 && batch.num_rows() <= max_rows_);
  for (const UnitId unit : passes_.groups[batch.range / 2].units_read_upward) {
    const int32_t layer = passes_.units[raw(unit)].layer;
    ops_.rms_norm(batch.hidden, layers_[layer].attention_norm->floats(), config_.rms_norm_eps,
                  batch.num_rows(), config_.hidden_size, normed_->floats());
    project_kv(layer, batch);
    const UnitRows& own = batch.units[raw(unit)];
    ops_.stage_kv(kv_->floats(), kv_->floats() + kv_width(layer), 2 * kv_width(layer), own.layout,
                  batch.staged_rows, own.read);
  }
}

void LlamaModel::logits(const float* hidden, int64_t rows, float* logits) {
  LCKV_CHECK(rows > 0 && rows <= max_rows_);
  ops_.rms_norm(hidden, final_norm_->floats(), config_.rms_norm_eps, rows, config_.hidden_size,
                normed_->floats());
  ops_.matmul(*head_, normed_->floats(), rows, logits, nullptr, false);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> load_llama(const LlamaOptions& options,
                                                  const ModelConfig& config, PassPlan passes,
                                                  std::unique_ptr<WeightStore> weights, Ops& ops) {
  try {
    return std::make_unique<LlamaModel>(options, config, std::move(passes), std::move(weights),
                                        ops);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("not enough memory for the weights");
  }
}

}  // namespace lckv
