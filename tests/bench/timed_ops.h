// TimedOps: passes every operation on and adds up the time spent in them. While it is idle, a
// batch's products are zeros and its attention is left out: whatever is decoded afterwards finds
// keys and values of prompts that took next to no time, zeros all.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/check.h"
#include "kernels/ops.h"

namespace lckv {

class TimedOps final : public Ops {
 public:
  // `total` outlives this.
  TimedOps(std::unique_ptr<Ops> ops, absl::Duration* total)
      : ops_(std::move(ops)), total_(*total) {}

  DType dtype() const override { return ops_->dtype(); }
  void enter_thread() override { ops_->enter_thread(); }
  const char* numerics() const override { return ops_->numerics(); }
  std::optional<DeviceMemory> memory() const override { return ops_->memory(); }
  void set_idle(bool idle) {
    is_idle_ = idle;
    if (!idle || zeros_ != nullptr) return;
    const std::vector<float> zeros(kMostColumns);
    zeros_ = ops_->allocate(zeros.size() * sizeof(float));
    ops_->copy(reinterpret_cast<const std::byte*>(zeros.data()), zeros_->data(), zeros_->bytes());
  }
  int32_t free_rows() const override { return ops_->free_rows(); }
  void begin_batch() override { ops_->begin_batch(); }
  bool repeat_batch(const BatchKey& key) override {
    const Timer timer(total_);
    skips_ = is_idle_;
    if (!skips_) return ops_->repeat_batch(key);
    ops_->begin_batch();
    return false;
  }
  void end_batch() override {
    const Timer timer(total_);
    skips_ = false;
    ops_->end_batch();
  }
  void forget_batches() override { ops_->forget_batches(); }
  int32_t padded_rows(int32_t rows) const override { return ops_->padded_rows(rows); }
  bool repeats_batches(int32_t rows) const override { return ops_->repeats_batches(rows); }
  bool returns_early() const override { return ops_->returns_early(); }
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override { return ops_->allocate(bytes); }
  std::unique_ptr<HostBuffer> allocate_host(size_t bytes) override {
    return ops_->allocate_host(bytes);
  }
  std::unique_ptr<ResultBuffer> allocate_results(size_t bytes) override {
    return ops_->allocate_results(bytes);
  }
  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) override {
    return ops_->pack(sources);
  }
  std::unique_ptr<PackedWeight> pack_on_host(std::span<const WeightSource> sources) override {
    return ops_->pack_on_host(sources);
  }
  std::unique_ptr<WeightSlot> allocate_weight_slot(size_t bytes) override {
    return ops_->allocate_weight_slot(bytes);
  }
  std::unique_ptr<EmbeddingTable> pack_table(const WeightSource& source,
                                             const PackedWeight* tied) override {
    return ops_->pack_table(source, tied);
  }
  std::unique_ptr<DeviceBuffer> upload(std::span<const WeightSource> sources) override {
    return ops_->upload(sources);
  }
  std::unique_ptr<DeviceBuffer> rope_table(const RopeOptions& options,
                                           int64_t max_positions) override {
    return ops_->rope_table(options, max_positions);
  }

  void fetch(std::span<PackedWeight* const> weights, WeightSlot& slot) override {
    const Timer timer(total_);
    ops_->fetch(weights, slot);
  }
  void embed(const EmbeddingTable& table, std::span<const TokenId> tokens, int32_t first,
             float* out) override {
    const Timer timer(total_);
    ops_->embed(table, tokens, first, out);
  }
  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden,
                std::byte* out) override {
    const Timer timer(total_);
    ops_->rms_norm(x, weight, eps, rows, hidden, out);
  }
  int64_t operand_row_bytes(int64_t k) const override { return ops_->operand_row_bytes(k); }
  void to_operand(const float* x, int64_t rows, int64_t k, std::byte* out) override {
    const Timer timer(total_);
    ops_->to_operand(x, rows, k, out);
  }
  void matmul(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
              const float* bias, bool accumulate) override {
    const Timer timer(total_);
    if (skips_) {
      if (!accumulate) zero(rows, weight.n(), y);
      return;
    }
    ops_->matmul(weight, x, rows, y, bias, accumulate);
  }
  void rope(float* x, int64_t row_stride, std::span<const int32_t> positions, int32_t heads,
            int32_t head_dim, DeviceBuffer& table) override {
    const Timer timer(total_);
    ops_->rope(x, row_stride, positions, heads, head_dim, table);
  }
  void silu_mul(const float* gate_up, int64_t rows, int64_t inner, std::byte* out) override {
    const Timer timer(total_);
    ops_->silu_mul(gate_up, rows, inner, out);
  }
  void gather_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                   float* out) override {
    const Timer timer(total_);
    ops_->gather_rows(x, ids, hidden, out);
  }
  void scatter_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                    float* out) override {
    const Timer timer(total_);
    ops_->scatter_rows(x, ids, hidden, out);
  }
  void stage_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                std::span<const int32_t> ids, const KvRows& staged) override {
    const Timer timer(total_);
    ops_->stage_kv(k, v, row_stride, layout, ids, staged);
  }
  void zero_kv(const KvLayout& layout, std::span<const int32_t> ids,
               const KvRows& staged) override {
    const Timer timer(total_);
    ops_->zero_kv(layout, ids, staged);
  }
  void copy_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to) override {
    const Timer timer(total_);
    ops_->copy_kv(layout, ids, from, to);
  }
  void compare_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& fresh,
                  const KvRows& read, KvDistance* out) override {
    const Timer timer(total_);
    ops_->compare_kv(layout, ids, fresh, read, out);
  }
  void append_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    const Timer timer(total_);
    ops_->append_kv(k, v, row_stride, layout, blocks, slots);
  }
  void commit_kv(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    const Timer timer(total_);
    ops_->commit_kv(staged, ids, layout, blocks, slots);
  }
  void rope_kv(const NewKv& rows, std::span<const int32_t> positions,
               DeviceBuffer& table) override {
    const Timer timer(total_);
    ops_->rope_kv(rows, positions, table);
  }
  void attention(const AttentionArgs& args) override {
    const Timer timer(total_);
    if (!skips_) ops_->attention(args);
  }
  void copy(const std::byte* from, std::byte* to, size_t bytes) override {
    const Timer timer(total_);
    ops_->copy(from, to, bytes);
  }
  void copy_block(const std::byte* from, std::byte* to, size_t bytes) override {
    const Timer timer(total_);
    ops_->copy_block(from, to, bytes);
  }
  void copy_columns(const float* from, int64_t from_stride, int64_t rows, int64_t width, float* to,
                    int64_t to_stride) override {
    const Timer timer(total_);
    ops_->copy_columns(from, from_stride, rows, width, to, to_stride);
  }
  void change_logits(float* logits, LogitChange change, std::span<const int32_t> ids,
                     std::span<const float> values) override {
    const Timer timer(total_);
    ops_->change_logits(logits, change, ids, values);
  }
  void logprobs(std::span<const LogprobArgs> rows, int32_t vocabulary) override {
    const Timer timer(total_);
    ops_->logprobs(rows, vocabulary);
  }
  void sample(std::span<const SampleArgs> rows) override {
    const Timer timer(total_);
    ops_->sample(rows);
  }

 private:
  static constexpr int64_t kMostColumns = 1 << 17;

  void zero(int64_t rows, int64_t n, float* y) {
    LCKV_CHECK(n <= kMostColumns);
    ops_->copy_columns(zeros_->floats(), 0, rows, n, y, n);
  }

  class Timer {
   public:
    explicit Timer(absl::Duration& total) : total_(total), began_(absl::Now()) {}
    ~Timer() { total_ += absl::Now() - began_; }

   private:
    absl::Duration& total_;
    const absl::Time began_;
  };

  const std::unique_ptr<Ops> ops_;
  absl::Duration& total_;
  bool is_idle_ = false;
  bool skips_ = false;                   // in a batch that began while it was idle
  std::unique_ptr<DeviceBuffer> zeros_;  // of one row
};

}  // namespace lckv
