#include "kernels/cuda/cuda_ops.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/batch_graphs.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/kv_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/recorded_rooms.h"
#include "kernels/cuda/row_chunks.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/stream.h"
#include "kernels/rope_frequencies.h"
#include "kernels/weight_values.h"

namespace lckv {
namespace {

// In the free mode histories are cut, and algorithms chosen, by what fills the device.
std::string numerics_of(const CudaOpsOptions& options, const CudaDeviceTraits& traits) {
  std::string device = "cuda " + std::to_string(traits.capability);
  if (options.dtype != DType::kFloat32) device += " tensor attention";
  if (options.reproducible) return device + " rows";
  return device + " cublaslt and rows, " + std::to_string(traits.num_multiprocessors) +
         " multiprocessors";
}

// Of a tensor core tile. Products of an H200 wait for their weights up to about 200 rows by its
// data sheet (990 TFLOP/s, 4.8 TB/s); not measured yet.
constexpr int32_t kFreeRows = 64;

// Of the rows that are drawn at once.
constexpr size_t kMassBytes = size_t{64} << 20;

// Rows that lie as a weight's do: its own, or the first of the output weight's where the two are
// tied.
class CudaTable final : public EmbeddingTable {
 public:
  CudaTable(int64_t n, const PackedWeight& tied) : n_(n), rows_(&tied) {}
  explicit CudaTable(std::unique_ptr<PackedWeight> own)
      : n_(own->n()), own_(std::move(own)), rows_(own_.get()) {}
  int64_t n() const override { return n_; }
  int64_t k() const override { return rows_->k(); }
  size_t bytes() const override { return own_ == nullptr ? 0 : own_->bytes(); }
  bool reads_source() const override { return false; }
  const std::byte* rows() const { return rows_of(*rows_); }

 private:
  const int64_t n_;
  const std::unique_ptr<PackedWeight> own_;
  const PackedWeight* const rows_;
};

class CudaOps final : public Ops, public StreamOwner {
 public:
  CudaOps(const CudaOpsOptions& options, const CudaDeviceTraits& traits)
      : device_(options.device),
        dtype_(options.dtype),
        uploads_(stream_),
        products_(options.dtype, options.reproducible, uploads_, stream_),
        attention_({.num_multiprocessors = traits.num_multiprocessors,
                    .reproducible = options.reproducible,
                    .max_upload_bytes = uploads_.max_bytes(),
                    .max_share_bytes = options.attention_share_bytes},
                   uploads_, stream_),
        graphs_(options.records_batches, uploads_, attention_, stream_),
        numerics_(numerics_of(options, traits)) {}

  cudaStream_t stream() const override { return stream_; }
  DType dtype() const override { return dtype_; }
  void enter_thread() override { check_cuda(cudaSetDevice(device_), "choosing the device"); }
  const char* numerics() const override { return numerics_.c_str(); }
  int32_t free_rows() const override { return kFreeRows; }
  void begin_batch() override { (void)graphs_.begin({.rows = INT32_MAX}); }
  bool repeat_batch(const BatchKey& key) override { return graphs_.begin(key); }
  void end_batch() override { graphs_.end(); }
  void forget_batches() override { graphs_.forget(); }
  int32_t padded_rows(int32_t rows) const override { return recorded_rows(rows); }
  bool repeats_batches(int32_t rows) const override { return graphs_.records(rows); }
  std::optional<DeviceMemory> memory() const override {
    size_t free = 0;
    size_t total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "asking for free memory");
    return DeviceMemory{.free = free, .total = total};
  }

  bool returns_early() const override { return true; }
  std::unique_ptr<HostBuffer> allocate_host(size_t bytes) override {
    return std::make_unique<CudaHostBuffer>(bytes);
  }
  std::unique_ptr<ResultBuffer> allocate_results(size_t bytes) override {
    return std::make_unique<CudaResults>(bytes, stream_);
  }

  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override {
    auto buffer = std::make_unique<CudaBuffer>(bytes, stream_);
    // The caller may write it in another order than the stream's.
    check_cuda(cudaStreamSynchronize(stream_), "clearing device memory");
    return buffer;
  }

  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) override {
    return products_.pack(sources);
  }
  std::unique_ptr<PackedWeight> pack_on_host(std::span<const WeightSource> sources) override {
    return products_.pack_on_host(sources);
  }
  std::unique_ptr<WeightSlot> allocate_weight_slot(size_t bytes) override {
    // What is to be fetched next time is not what was fetched when a batch was recorded.
    graphs_.stop_recording();
    return products_.allocate_slot(bytes);
  }
  void fetch(std::span<PackedWeight* const> weights, WeightSlot& slot) override {
    products_.fetch(weights, slot);
  }

  std::unique_ptr<EmbeddingTable> pack_table(const WeightSource& source,
                                             const PackedWeight* tied) override {
    if (tied == nullptr) return std::make_unique<CudaTable>(products_.pack({&source, 1}));
    LCKV_CHECK(source.n <= tied->n() && source.k == tied->k());
    return std::make_unique<CudaTable>(source.n, *tied);
  }

  std::unique_ptr<DeviceBuffer> upload(std::span<const WeightSource> sources) override {
    std::vector<float> values;
    for (const WeightSource& source : sources) {
      for (int64_t i = 0; i < source.n * source.k; ++i) values.push_back(weight_value(source, i));
    }
    return uploaded(values);
  }

  void embed(const EmbeddingTable& table, std::span<const TokenId> tokens, int32_t first,
             float* out) override {
    embed_rows({.table = dynamic_cast<const CudaTable&>(table).rows(),
                .dtype = dtype_,
                .n = table.n(),
                .row_values = chunked_k(dtype_, table.k()),
                .tokens = uploads_.upload(tokens),
                .first = first,
                .count = static_cast<int64_t>(tokens.size()),
                .hidden = table.k(),
                .out = out},
               stream_);
  }

  int64_t operand_row_bytes(int64_t k) const override {
    return chunked_k(dtype_, k) * static_cast<int64_t>(dtype_bytes(dtype_));
  }
  void to_operand(const float* x, int64_t rows, int64_t k, std::byte* out) override {
    lay_out_rows({.x = reinterpret_cast<const std::byte*>(x),
                  .from = DType::kFloat32,
                  .to = dtype_,
                  .rows = rows,
                  .k = k,
                  .out = out},
                 stream_);
  }

  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden,
                std::byte* out) override {
    rms_norm_rows({.x = x,
                   .weight = weight,
                   .eps = eps,
                   .rows = rows,
                   .hidden = hidden,
                   .dtype = dtype_,
                   .out = out},
                  stream_);
  }

  void matmul(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
              const float* bias, bool accumulate) override {
    products_.multiply(weight, x, rows, y, bias, accumulate);
  }

  std::unique_ptr<DeviceBuffer> rope_table(const RopeOptions& options,
                                           int64_t max_positions) override {
    return uploaded(rope_cos_sin(options, max_positions));
  }

  void rope(float* x, int64_t row_stride, std::span<const int32_t> positions, int32_t heads,
            int32_t head_dim, DeviceBuffer& table) override {
    const float* const cos = table.floats();
    rope_rows({.x = x,
               .row_stride = row_stride,
               .positions = uploads_.upload(positions),
               .rows = static_cast<int64_t>(positions.size()),
               .heads = heads,
               .head_dim = head_dim,
               .cos = cos,
               .sin = cos + table.bytes() / sizeof(float) / 2},
              stream_);
  }

  void silu_mul(const float* gate_up, int64_t rows, int64_t inner, std::byte* out) override {
    silu_mul_rows({.gate_up = gate_up, .rows = rows, .inner = inner, .dtype = dtype_, .out = out},
                  stream_);
  }

  void gather_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                   float* out) override {
    gather_rows_by_id(moved(x, ids, hidden, out), stream_);
  }

  void scatter_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                    float* out) override {
    scatter_rows_by_id(moved(x, ids, hidden, out), stream_);
  }

  void stage_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                std::span<const int32_t> ids, const KvRows& staged) override {
    stage_kv_rows({k, v, row_stride}, layout, staged_ids(ids), staged, stream_);
  }

  void zero_kv(const KvLayout& layout, std::span<const int32_t> ids,
               const KvRows& staged) override {
    zero_kv_rows(layout, staged_ids(ids), staged, stream_);
  }

  void copy_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to) override {
    copy_kv_rows(layout, staged_ids(ids), from, to, stream_);
  }

  void compare_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& fresh,
                  const KvRows& read, KvDistance* out) override {
    compare_kv_rows(layout, staged_ids(ids), fresh, read, out, stream_);
  }

  void append_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    append_kv_rows({k, v, row_stride}, layout, slot_ids(blocks, slots), stream_);
  }

  void commit_kv(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    LCKV_CHECK(ids.size() == blocks.size());
    commit_kv_rows(staged, staged_ids(ids), layout, slot_ids(blocks, slots), stream_);
  }

  void rope_kv(const NewKv& rows, std::span<const int32_t> positions,
               DeviceBuffer& table) override {
    const float* const cos = table.floats();
    RotatedKv rotated{.q = rows.q,
                      .num_heads = rows.q == nullptr ? 0 : rows.num_heads,
                      .kv = rows.kv,
                      .positions = uploads_.upload(positions),
                      .rows = static_cast<int64_t>(positions.size()),
                      .cos = cos,
                      .sin = cos + table.bytes() / sizeof(float) / 2,
                      .layout = rows.layout,
                      .staged = rows.staged};
    if (rows.blocks.empty()) {
      LCKV_CHECK(rows.staged_rows.size() == positions.size());
      rotated.staged_rows = uploads_.upload(rows.staged_rows);
    } else {
      LCKV_CHECK(rows.blocks.size() == positions.size());
      rotated.slots = slot_ids(rows.blocks, rows.slots);
    }
    rotate_kv_rows(rotated, stream_);
  }

  void attention(const AttentionArgs& args) override { attention_.run(args); }

  void copy(const std::byte* from, std::byte* to, size_t bytes) override {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copy");
    // Host memory is what its owner reads or changes next.
    if (is_on_device(from) && is_on_device(to)) return;
    check_cuda(cudaStreamSynchronize(stream_), "copy");
  }

  void copy_block(const std::byte* from, std::byte* to, size_t bytes) override {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying a block");
  }

  void copy_columns(const float* from, int64_t from_stride, int64_t rows, int64_t width, float* to,
                    int64_t to_stride) override {
    const auto bytes = [](int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); };
    check_cuda(cudaMemcpy2DAsync(to, bytes(to_stride), from, bytes(from_stride), bytes(width),
                                 static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, stream_),
               "copying columns");
  }

  void change_logits(float* logits, LogitChange change, std::span<const int32_t> ids,
                     std::span<const float> values) override {
    LCKV_CHECK(ids.size() == values.size());
    change_row_logits({.logits = logits,
                       .change = change,
                       .ids = uploads_.upload(ids),
                       .values = uploads_.upload(values),
                       .count = static_cast<int32_t>(ids.size())},
                      stream_);
  }

  void logprobs(std::span<const LogprobArgs> rows, int32_t vocabulary) override {
    for (const LogprobArgs& row : rows) {
      LCKV_CHECK(row.num_top >= 0 && row.num_top <= vocabulary);
    }
    find_row_logprobs({.rows = uploads_.upload(rows),
                       .num_rows = static_cast<int32_t>(rows.size()),
                       .vocabulary = vocabulary},
                      stream_);
  }

  void sample(std::span<const SampleArgs> rows) override {
    if (rows.empty()) return;
    const int32_t vocabulary = rows.front().vocabulary;
    for (const SampleArgs& row : rows) {
      LCKV_CHECK(row.vocabulary == vocabulary && row.temperature >= 0.0F);
    }
    // As much for few rows as for many: what serving takes does not depend on what is asked of it.
    const size_t row_bytes = static_cast<size_t>(vocabulary) * sizeof(Mass);
    const size_t at_once = std::max<size_t>(kMassBytes / row_bytes, 1);
    grow(masses_, at_once * row_bytes, stream_);
    for (; !rows.empty(); rows = rows.subspan(std::min(at_once, rows.size()))) {
      const auto some = rows.first(std::min(at_once, rows.size()));
      draw_rows({.rows = uploads_.upload(some),
                 .num_rows = static_cast<int32_t>(some.size()),
                 .vocabulary = vocabulary,
                 .masses = reinterpret_cast<Mass*>(masses_->data())},
                stream_);
    }
  }

 private:
  std::unique_ptr<DeviceBuffer> uploaded(const std::vector<float>& values) {
    auto buffer = allocate(values.size() * sizeof(float));
    copy(reinterpret_cast<const std::byte*>(values.data()), buffer->data(), buffer->bytes());
    return buffer;
  }

  MovedRows moved(const float* x, std::span<const int32_t> ids, int64_t hidden, float* out) {
    return {.x = x,
            .ids = uploads_.upload(ids),
            .count = static_cast<int64_t>(ids.size()),
            .hidden = hidden,
            .out = out};
  }
  StagedIds staged_ids(std::span<const int32_t> ids) {
    return {.ids = uploads_.upload(ids), .count = static_cast<int64_t>(ids.size())};
  }
  SlotIds slot_ids(std::span<const int32_t> blocks, std::span<const int32_t> slots) {
    LCKV_CHECK(blocks.size() == slots.size());
    return {.blocks = uploads_.upload(blocks),
            .slots = uploads_.upload(slots),
            .count = static_cast<int64_t>(blocks.size())};
  }

  const int32_t device_;
  const DType dtype_;
  const Stream stream_;
  UploadRing uploads_;
  CudaProducts products_;
  CudaAttention attention_;
  BatchGraphs graphs_;
  std::unique_ptr<CudaBuffer> masses_;  // of the rows that are drawn at once
  const std::string numerics_;
};

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(const CudaOpsOptions& options, const CudaDeviceTraits& traits) {
  check_cuda(cudaSetDevice(options.device), "choosing the device");
  return std::make_unique<CudaOps>(options, traits);
}

}  // namespace lckv
