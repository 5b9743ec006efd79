#include "worker/model/llama.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/model/llama_weights.h"

namespace lckv {
namespace {

// Logits of so many bytes are gathered at once.
constexpr int64_t kGatherBytes = int64_t{16} << 20;

float* floats(const std::unique_ptr<DeviceBuffer>& buffer) {
  return buffer == nullptr ? nullptr : buffer->floats();
}

class LlamaModel : public Model {
 public:
  LlamaModel(const LlamaOptions& options, const ModelConfig& config, PassPlan passes,
             std::unique_ptr<WeightStore> weights, Ops& ops)
      : max_rows_(options.max_rows),
        ranks_(options.ranks),
        shard_(weights->shard()),
        config_(config),
        passes_(std::move(passes)),
        num_heads_(config.num_heads / shard_.size),
        inner_size_(config.intermediate_size / shard_.size),
        vocabulary_share_(vocabulary_per_rank(config.vocabulary_size, shard_.size)),
        ops_(ops),
        weights_(pack_llama(config, passes_, std::move(weights),
                            {ops, options.offload, options.progress})),
        offloaded_(weights_.offloaded, ops) {
    LCKV_CHECK(options.max_rows > 0 && options.max_positions > 0);
    LCKV_CHECK(shard_.rank == (ranks_ == nullptr ? 0 : ranks_->rank()));
    LCKV_CHECK(shard_.size == (ranks_ == nullptr ? 1 : ranks_->size()));
    rope_ = ops_.rope_table(config_.rope, options.max_positions);
    allocate();
  }

  int32_t hidden_size() const override { return config_.hidden_size; }
  int32_t vocabulary_size() const override { return config_.vocabulary_size; }
  int32_t max_rows() const override { return max_rows_; }
  size_t weight_bytes() const override { return weights_.bytes + offloaded_.slot_bytes(); }

  absl::Status embed(std::span<const TokenId> tokens, float* hidden) override;
  absl::Status run(const RangeBatch& batch) override;
  void guess(const RangeBatch& batch) override;
  absl::Status logits(const float* hidden, int64_t rows, float* logits) override;

 private:
  void allocate();
  void attend(int32_t layer, const RangeBatch& batch);
  NewKv project_kv(int32_t layer, const RangeBatch& batch);
  void widen(int32_t layer, const RangeBatch& batch);
  absl::Status add_share(const PackedWeight& weight, const std::unique_ptr<DeviceBuffer>& x,
                         const RangeBatch& batch, const std::unique_ptr<DeviceBuffer>& bias);
  absl::Status gather_logits(int64_t rows, float* logits);
  LayerRange layers_of(int32_t range) const {
    return range % 2 == 0 ? passes_.ordinary[range / 2] : passes_.groups[range / 2].layers;
  }
  int32_t kv_width(int32_t layer) const {
    const LayerSpec& spec = passes_.layers.layers[layer];
    return spec.kv_heads * spec.head_dim;
  }

  const int32_t max_rows_;
  Collectives* const ranks_;  // null: alone
  const TensorShard shard_;
  const ModelConfig config_;
  const PassPlan passes_;
  const int32_t num_heads_;         // of this rank, as the next two
  const int32_t inner_size_;        // of the MLP
  const int32_t vocabulary_share_;  // ids; of the last ranks some lie beyond the vocabulary
  Ops& ops_;
  const LlamaWeights weights_;
  OffloadedLayers offloaded_;
  std::unique_ptr<DeviceBuffer> rope_;

  // Activations, [max_rows, ...] each.
  std::unique_ptr<DeviceBuffer> normed_;    // operand: hidden
  std::unique_ptr<DeviceBuffer> q_;         // heads * head_dim
  std::unique_ptr<DeviceBuffer> kv_;        // k, then v
  std::unique_ptr<DeviceBuffer> attended_;  // operand: heads * head_dim
  std::unique_ptr<DeviceBuffer> gate_up_;   // 2 * intermediate
  std::unique_ptr<DeviceBuffer> inner_;     // operand: intermediate
  // Null where one rank has all logits: [gather_rows_, vocabulary_share_], and of every rank.
  int64_t gather_rows_ = 0;
  std::unique_ptr<DeviceBuffer> own_logits_;
  std::unique_ptr<DeviceBuffer> all_logits_;
};

absl::Status within(absl::Status status, absl::string_view operation) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(operation, ": ", status.message()));
}

void LlamaModel::allocate() {
  const int32_t q_width = num_heads_ * config_.head_dim;
  int32_t kv_max = 0;
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    kv_max = std::max(kv_max, 2 * kv_width(layer));
  }
  const auto rows_of = [this](int64_t width) {
    return ops_.allocate(static_cast<size_t>(max_rows_) * width * sizeof(float));
  };
  const auto operands_of = [this](int64_t width) {
    return ops_.allocate(static_cast<size_t>(max_rows_ * ops_.operand_row_bytes(width)));
  };
  normed_ = operands_of(config_.hidden_size);
  q_ = rows_of(q_width);
  kv_ = rows_of(kv_max);
  attended_ = operands_of(q_width);
  gate_up_ = rows_of(2 * static_cast<int64_t>(inner_size_));
  inner_ = operands_of(inner_size_);
  if (shard_.size == 1) return;
  const int64_t row_bytes = int64_t{vocabulary_share_} * static_cast<int64_t>(sizeof(float));
  gather_rows_ = std::clamp<int64_t>(kGatherBytes / (row_bytes * shard_.size), 1, max_rows_);
  own_logits_ = ops_.allocate(static_cast<size_t>(gather_rows_ * row_bytes));
  all_logits_ = ops_.allocate(static_cast<size_t>(gather_rows_ * row_bytes * shard_.size));
}

// Each rank looks up the ids that it has and leaves the others zero.
absl::Status LlamaModel::embed(std::span<const TokenId> tokens, float* hidden) {
  for (const TokenId& token : tokens) LCKV_CHECK(token.id >= 0 && token.id < vocabulary_size());
  ops_.embed(*weights_.embedding, tokens, shard_.rank * vocabulary_share_, hidden);
  if (shard_.size == 1) return absl::OkStatus();
  const auto count = static_cast<int64_t>(tokens.size()) * hidden_size();
  return within(ranks_->all_reduce(hidden, count), "all_reduce of embeddings");
}

absl::Status LlamaModel::run(const RangeBatch& batch) {
  LCKV_CHECK(batch.num_rows() > 0 && batch.num_rows() <= max_rows_);
  LCKV_CHECK(batch.range % 2 == 0 || batch.staged_rows.size() == batch.positions.size());
  const OpsBatch same_inputs(ops_,
                             {.range = 2 * batch.range + (batch.official_decode == nullptr ? 0 : 1),
                              .rows = static_cast<int32_t>(batch.num_rows())});
  if (same_inputs.is_repeated()) return absl::OkStatus();
  const LayerRange range = layers_of(batch.range);
  for (int32_t layer = range.begin; layer < range.end; ++layer) {
    if (batch.before_layer != nullptr) (*batch.before_layer)();
    const LlamaLayer& weights = weights_.layers[layer];
    offloaded_.enter(layer);
    attend(layer, batch);
    absl::Status status = add_share(*weights.o, attended_, batch, weights.o_bias);
    if (!status.ok()) return within(status, absl::StrCat("all_reduce of layer ", layer, " o_proj"));
    widen(layer, batch);
    status = add_share(*weights.down, inner_, batch, nullptr);
    if (!status.ok()) {
      return within(status, absl::StrCat("all_reduce of layer ", layer, " down_proj"));
    }
    offloaded_.leave(layer);
  }
  return absl::OkStatus();
}

// hidden += x * W^T (+ bias), of which each rank has a share. The first rank adds its own to what
// is there, so that the sum over the ranks is the new hidden state and needs no memory besides.
absl::Status LlamaModel::add_share(const PackedWeight& weight,
                                   const std::unique_ptr<DeviceBuffer>& x, const RangeBatch& batch,
                                   const std::unique_ptr<DeviceBuffer>& bias) {
  const bool is_first = shard_.rank == 0;
  ops_.matmul(weight, x->data(), batch.num_rows(), batch.hidden, is_first ? floats(bias) : nullptr,
              /*accumulate=*/is_first);
  if (shard_.size == 1) return absl::OkStatus();
  return ranks_->all_reduce(batch.hidden, batch.num_rows() * hidden_size());
}

// Keys and values of normed_, which are to be rotated.
NewKv LlamaModel::project_kv(int32_t layer, const RangeBatch& batch) {
  const LlamaLayer& weights = weights_.layers[layer];
  ops_.matmul(*weights.kv, normed_->data(), batch.num_rows(), kv_->floats(),
              floats(weights.kv_bias), /*accumulate=*/false);
  const UnitRows& own = batch.units[passes_.unit_of_layer[layer]];
  NewKv rows{.kv = kv_->floats(), .layout = own.layout};
  if (batch.range % 2 == 1) {
    rows.staged_rows = batch.staged_rows;
    rows.staged = own.fresh;
  } else {
    rows.blocks = own.blocks;
    rows.slots = own.slots;
  }
  return rows;
}

// attended_ = what o_proj takes in.
void LlamaModel::attend(int32_t layer, const RangeBatch& batch) {
  const LlamaLayer& weights = weights_.layers[layer];
  const LayerSpec& spec = passes_.layers.layers[layer];
  const int64_t rows = batch.num_rows();
  ops_.rms_norm(batch.hidden, weights.attention_norm->floats(), config_.rms_norm_eps, rows,
                config_.hidden_size, normed_->data());
  ops_.matmul(*weights.q, normed_->data(), rows, q_->floats(), floats(weights.q_bias), false);
  if (passes_.unit_of_layer[layer] >= 0) {
    NewKv own = project_kv(layer, batch);
    own.q = q_->floats();
    own.num_heads = num_heads_;
    ops_.rope_kv(own, batch.positions, *rope_);
  } else {
    ops_.rope(q_->floats(), num_heads_ * config_.head_dim, batch.positions, num_heads_,
              config_.head_dim, *rope_);
  }

  const bool is_cyclic = spec.source > layer;
  const UnitRows& read = batch.units[raw(passes_.source_unit(layer))];
  AttentionArgs args{.q = q_->floats(),
                     .out = attended_->data(),
                     .positions = batch.positions.data(),
                     .num_heads = num_heads_,
                     .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
                     .strict = spec.self_excluding,
                     .window = spec.window,
                     .num_sinks = spec.num_sinks,
                     .official_decode = is_cyclic ? batch.official_decode : nullptr,
                     .layout = read.layout,
                     .staged = is_cyclic ? read.read : read.fresh,
                     .segments = read.segments};
  ops_.attention(args);
}

// inner_ = what down_proj takes in.
void LlamaModel::widen(int32_t layer, const RangeBatch& batch) {
  const LlamaLayer& weights = weights_.layers[layer];
  const int64_t rows = batch.num_rows();
  ops_.rms_norm(batch.hidden, weights.mlp_norm->floats(), config_.rms_norm_eps, rows,
                config_.hidden_size, normed_->data());
  ops_.matmul(*weights.gate_up, normed_->data(), rows, gate_up_->floats(), nullptr, false);
  ops_.silu_mul(gate_up_->floats(), rows, inner_size_, inner_->data());
}

void LlamaModel::guess(const RangeBatch& batch) {
  LCKV_CHECK(batch.range % 2 == 1 && batch.num_rows() <= max_rows_);
  for (const UnitId unit : passes_.groups[batch.range / 2].units_read_upward) {
    const int32_t layer = passes_.units[raw(unit)].layer;
    ops_.rms_norm(batch.hidden, weights_.layers[layer].attention_norm->floats(),
                  config_.rms_norm_eps, batch.num_rows(), config_.hidden_size, normed_->data());
    NewKv own = project_kv(layer, batch);
    own.staged = batch.units[raw(unit)].read;
    ops_.rope_kv(own, batch.positions, *rope_);
  }
}

absl::Status LlamaModel::logits(const float* hidden, int64_t rows, float* logits) {
  LCKV_CHECK(rows > 0 && rows <= max_rows_);
  ops_.rms_norm(hidden, weights_.final_norm->floats(), config_.rms_norm_eps, rows,
                config_.hidden_size, normed_->data());
  if (shard_.size == 1) {
    ops_.matmul(*weights_.head, normed_->data(), rows, logits, nullptr, false);
    return absl::OkStatus();
  }
  for (int64_t row = 0; row < rows; row += gather_rows_) {
    const int64_t some = std::min(gather_rows_, rows - row);
    ops_.matmul(*weights_.head, normed_->data() + row * ops_.operand_row_bytes(hidden_size()), some,
                own_logits_->floats(), nullptr, false);
    absl::Status status = gather_logits(some, logits + row * vocabulary_size());
    if (!status.ok()) return within(status, "all_gather of logits");
  }
  return absl::OkStatus();
}

// Every rank samples from all logits: the same bytes everywhere give the same ids without another
// exchange.
absl::Status LlamaModel::gather_logits(int64_t rows, float* logits) {
  const int64_t share = vocabulary_share_;
  absl::Status status =
      ranks_->all_gather(own_logits_->floats(), rows * share, all_logits_->floats());
  if (!status.ok()) return status;
  for (int rank = 0; rank < shard_.size; ++rank) {
    const int64_t begin = rank * share;
    const int64_t count = std::min<int64_t>(share, vocabulary_size() - begin);
    if (count <= 0) break;
    ops_.copy_columns(all_logits_->floats() + rank * rows * share, share, rows, count,
                      logits + begin, vocabulary_size());
  }
  return absl::OkStatus();
}

}  // namespace

OffloadPlan plan_llama_offload(const ModelConfig& config, const PassPlan& passes, int32_t num_ranks,
                               DType dtype, uint64_t bytes) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_width = int64_t{config.num_heads / num_ranks} * config.head_dim;
  const int64_t inner = config.intermediate_size / num_ranks;
  std::vector<uint64_t> layer_bytes;
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    const LayerSpec& spec = passes.layers.layers[layer];
    int64_t width = 2 * q_width + 3 * inner;  // of q and o, of gate, up and down
    if (passes.unit_of_layer[layer] >= 0 && !is_guessed(passes, layer)) {
      width += 2 * int64_t{spec.kv_heads} * spec.head_dim;
    }
    layer_bytes.push_back(static_cast<uint64_t>(width * hidden) * dtype_bytes(dtype));
  }
  return plan_offload(layer_bytes, bytes);
}

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
