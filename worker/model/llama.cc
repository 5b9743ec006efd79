#include "worker/model/llama.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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
        collective_timeout_(options.collective_timeout),
        shard_(weights->shard()),
        config_(config),
        passes_(std::move(passes)),
        num_heads_(config.num_heads / shard_.size),
        inner_size_(config.intermediate_size / shard_.size),
        vocabulary_share_(vocabulary_per_rank(config.vocabulary_size, shard_.size)),
        ops_(ops),
        weights_(std::move(weights)) {
    LCKV_CHECK(options.max_rows > 0 && options.max_positions > 0);
    LCKV_CHECK(shard_.rank == (ranks_ == nullptr ? 0 : ranks_->rank()));
    LCKV_CHECK(shard_.size == (ranks_ == nullptr ? 1 : ranks_->size()));
    load(options);
    allocate();
  }

  int32_t hidden_size() const override { return config_.hidden_size; }
  int32_t vocabulary_size() const override { return config_.vocabulary_size; }
  int32_t max_rows() const override { return max_rows_; }
  size_t weight_bytes() const override { return weight_bytes_; }

  absl::Status embed(std::span<const int32_t> ids, float* hidden) override;
  absl::Status run(const RangeBatch& batch) override;
  void guess(const RangeBatch& batch) override;
  absl::Status logits(const float* hidden, int64_t rows, float* logits) override;

 private:
  void load(const LlamaOptions& options);
  void load_layer(int32_t layer);
  void allocate();
  WeightSource source(const std::string& name, bool is_kept = false);
  WeightSource contiguous(const TensorView& tensor);
  std::unique_ptr<PackedWeight> pack_head(const WeightSource& head);
  std::unique_ptr<PackedWeight> pack(std::initializer_list<WeightSource> sources);
  std::unique_ptr<DeviceBuffer> upload(std::initializer_list<WeightSource> sources);
  void forget_packed();

  void attend(int32_t layer, const RangeBatch& batch);
  void project_kv(int32_t layer, const RangeBatch& batch);
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
  const absl::Duration collective_timeout_;
  const TensorShard shard_;
  const ModelConfig config_;
  const PassPlan passes_;
  const int32_t num_heads_;         // of this rank, as the next two
  const int32_t inner_size_;        // of the MLP
  const int32_t vocabulary_share_;  // ids; of the last ranks some lie beyond the vocabulary
  Ops& ops_;
  const std::unique_ptr<WeightStore> weights_;
  std::function<void(uint64_t)> progress_;
  uint64_t done_bytes_ = 0;
  std::vector<const TensorView*> packed_;       // since forget_packed(), as the next
  std::vector<std::vector<std::byte>> copies_;  // of slices of columns
  size_t weight_bytes_ = 0;

  WeightSource embedding_;  // ids [embedding_begin_, embedding_begin_ + n)
  int32_t embedding_begin_ = 0;
  std::vector<int32_t> own_ids_;     // of the batch that is being embedded, from embedding_begin_
  std::vector<float> no_embedding_;  // [hidden]: zeros
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
  // Null where one rank has all logits: [gather_rows_, vocabulary_share_], and of every rank.
  int64_t gather_rows_ = 0;
  std::unique_ptr<DeviceBuffer> own_logits_;
  std::unique_ptr<DeviceBuffer> all_logits_;
};

absl::Status within(absl::Status status, absl::string_view operation) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(operation, ": ", status.message()));
}

WeightSource LlamaModel::source(const std::string& name, bool is_kept) {
  const TensorView* tensor = weights_->find(name);
  LCKV_CHECK(tensor != nullptr);
  LCKV_CHECK(tensor->shape.size() == 1 || tensor->shape.size() == 2);
  if (!is_kept) packed_.push_back(tensor);
  done_bytes_ += tensor->slice_bytes();
  const TensorSlice& slice = tensor->slice;
  if (tensor->shape.size() == 2 && slice.columns < tensor->shape[1]) return contiguous(*tensor);
  const bool is_matrix = tensor->shape.size() == 2;
  const int64_t first = slice.row * slice.columns;
  return {.data = tensor->data + first * static_cast<int64_t>(dtype_bytes(tensor->dtype)),
          .dtype = tensor->dtype,
          .n = is_matrix ? slice.rows : 1,
          .k = is_matrix ? slice.columns : slice.rows};
}

WeightSource LlamaModel::contiguous(const TensorView& tensor) {
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
void LlamaModel::forget_packed() {
  for (const TensorView* tensor : packed_) weights_->forget(*tensor);
  packed_.clear();
  copies_.clear();
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

// The last ranks' rows beyond the vocabulary are zeros: all ranks gather equally many logits.
std::unique_ptr<PackedWeight> LlamaModel::pack_head(const WeightSource& head) {
  if (head.n == vocabulary_share_) return pack({head});
  WeightSource beyond{.dtype = head.dtype, .n = vocabulary_share_ - head.n, .k = head.k};
  const size_t elements = static_cast<size_t>(beyond.n) * static_cast<size_t>(beyond.k);
  beyond.data = copies_.emplace_back(elements * dtype_bytes(head.dtype)).data();
  return head.n == 0 ? pack({beyond}) : pack({head, beyond});
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
  embedding_begin_ = shard_.rank * vocabulary_share_;
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) load_layer(layer);
  final_norm_ = upload({source("model.norm.weight")});
  head_ = pack_head(config_.tie_word_embeddings ? embedding_ : source("lm_head.weight"));
  rope_ = ops_.rope_table(config_.rope, options.max_positions);
  progress_ = nullptr;
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
  normed_ = rows_of(config_.hidden_size);
  q_ = rows_of(q_width);
  kv_ = rows_of(kv_max);
  attended_ = rows_of(q_width);
  gate_up_ = rows_of(2 * static_cast<int64_t>(inner_size_));
  inner_ = rows_of(inner_size_);
  if (shard_.size == 1) return;
  no_embedding_.resize(config_.hidden_size);
  const int64_t row_bytes = int64_t{vocabulary_share_} * static_cast<int64_t>(sizeof(float));
  gather_rows_ = std::clamp<int64_t>(kGatherBytes / (row_bytes * shard_.size), 1, max_rows_);
  own_logits_ = ops_.allocate(static_cast<size_t>(gather_rows_ * row_bytes));
  all_logits_ = ops_.allocate(static_cast<size_t>(gather_rows_ * row_bytes * shard_.size));
}

// Each rank looks up the ids that it has and leaves the others zero.
absl::Status LlamaModel::embed(std::span<const int32_t> ids, float* hidden) {
  if (shard_.size == 1) {
    ops_.embed(embedding_, ids, hidden);
    return absl::OkStatus();
  }
  const auto is_own = [this](int32_t id) {
    return id >= embedding_begin_ && id < embedding_begin_ + embedding_.n;
  };
  own_ids_.clear();
  for (const int32_t id : ids) own_ids_.push_back(is_own(id) ? id - embedding_begin_ : 0);
  if (embedding_.n > 0) ops_.embed(embedding_, own_ids_, hidden);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (is_own(ids[i])) continue;
    ops_.copy(reinterpret_cast<const std::byte*>(no_embedding_.data()),
              reinterpret_cast<std::byte*>(hidden + static_cast<int64_t>(i) * hidden_size()),
              sizeof(float) * no_embedding_.size());
  }
  const auto count = static_cast<int64_t>(ids.size()) * hidden_size();
  return within(ranks_->all_reduce(hidden, count, collective_timeout_), "all_reduce of embeddings");
}

absl::Status LlamaModel::run(const RangeBatch& batch) {
  LCKV_CHECK(batch.num_rows() > 0 && batch.num_rows() <= max_rows_);
  LCKV_CHECK(batch.range % 2 == 0 || batch.staged_rows.size() == batch.positions.size());
  const LayerRange range = layers_of(batch.range);
  for (int32_t layer = range.begin; layer < range.end; ++layer) {
    const LlamaLayer& weights = layers_[layer];
    attend(layer, batch);
    absl::Status status = add_share(*weights.o, attended_, batch, weights.o_bias);
    if (!status.ok()) return within(status, absl::StrCat("all_reduce of layer ", layer, " o_proj"));
    widen(layer, batch);
    status = add_share(*weights.down, inner_, batch, nullptr);
    if (!status.ok()) {
      return within(status, absl::StrCat("all_reduce of layer ", layer, " down_proj"));
    }
  }
  return absl::OkStatus();
}

// hidden += x * W^T (+ bias), of which each rank has a share. The first rank adds its own to what
// is there, so that the sum over the ranks is the new hidden state and needs no memory besides.
absl::Status LlamaModel::add_share(const PackedWeight& weight,
                                   const std::unique_ptr<DeviceBuffer>& x, const RangeBatch& batch,
                                   const std::unique_ptr<DeviceBuffer>& bias) {
  const bool is_first = shard_.rank == 0;
  ops_.matmul(weight, x->floats(), batch.num_rows(), batch.hidden,
              is_first ? floats(bias) : nullptr, /*accumulate=*/is_first);
  if (shard_.size == 1) return absl::OkStatus();
  return ranks_->all_reduce(batch.hidden, batch.num_rows() * hidden_size(), collective_timeout_);
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

// attended_ = what o_proj takes in.
void LlamaModel::attend(int32_t layer, const RangeBatch& batch) {
  const LlamaLayer& weights = layers_[layer];
  const LayerSpec& spec = passes_.layers.layers[layer];
  const int64_t rows = batch.num_rows();
  const bool in_group = batch.range % 2 == 1;
  ops_.rms_norm(batch.hidden, weights.attention_norm->floats(), config_.rms_norm_eps, rows,
                config_.hidden_size, normed_->floats());
  ops_.matmul(*weights.q, normed_->floats(), rows, q_->floats(), floats(weights.q_bias), false);
  ops_.rope(q_->floats(), num_heads_ * config_.head_dim, batch.positions, num_heads_,
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
  const LlamaLayer& weights = layers_[layer];
  const int64_t rows = batch.num_rows();
  ops_.rms_norm(batch.hidden, weights.mlp_norm->floats(), config_.rms_norm_eps, rows,
                config_.hidden_size, normed_->floats());
  ops_.matmul(*weights.gate_up, normed_->floats(), rows, gate_up_->floats(), nullptr, false);
  ops_.silu_mul(gate_up_->floats(), rows, inner_size_, inner_->floats());
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

absl::Status LlamaModel::logits(const float* hidden, int64_t rows, float* logits) {
  LCKV_CHECK(rows > 0 && rows <= max_rows_);
  ops_.rms_norm(hidden, final_norm_->floats(), config_.rms_norm_eps, rows, config_.hidden_size,
                normed_->floats());
  if (shard_.size == 1) {
    ops_.matmul(*head_, normed_->floats(), rows, logits, nullptr, false);
    return absl::OkStatus();
  }
  for (int64_t row = 0; row < rows; row += gather_rows_) {
    const int64_t some = std::min(gather_rows_, rows - row);
    ops_.matmul(*head_, normed_->floats() + row * hidden_size(), some, own_logits_->floats(),
                nullptr, false);
    absl::Status status = gather_logits(some, logits + row * vocabulary_size());
    if (!status.ok()) return within(status, "all_gather of logits");
  }
  return absl::OkStatus();
}

// Every rank samples from all logits: the same bytes everywhere give the same ids without another
// exchange.
absl::Status LlamaModel::gather_logits(int64_t rows, float* logits) {
  const int64_t share = vocabulary_share_;
  absl::Status status = ranks_->all_gather(own_logits_->floats(), rows * share,
                                           all_logits_->floats(), collective_timeout_);
  if (!status.ok()) return status;
  for (int rank = 0; rank < shard_.size; ++rank) {
    const int64_t begin = rank * share;
    const int64_t count = std::min<int64_t>(share, vocabulary_size() - begin);
    if (count <= 0) break;
    for (int64_t row = 0; row < rows; ++row) {
      const float* const from = all_logits_->floats() + (rank * rows + row) * share;
      ops_.copy(reinterpret_cast<const std::byte*>(from),
                reinterpret_cast<std::byte*>(logits + row * vocabulary_size() + begin),
                sizeof(float) * static_cast<size_t>(count));
    }
  }
  return absl::OkStatus();
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
