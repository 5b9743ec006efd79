// ProbedOps: a backend that tests can look into.
//
// Forwards to another Ops. Memory starts filled with one byte (0xff is not-a-number in every
// format), so that reading what was never written shows; logits that log-probabilities are asked of
// are kept; the place of the KV blocks is remembered. One thread, as any Ops.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace lckv {

class ProbedOps : public Ops {
 public:
  ProbedOps(std::unique_ptr<Ops> inner, uint8_t fill) : inner_(std::move(inner)), fill_(fill) {}

  // Rows of logits given to logprobs() since the last call.
  std::vector<std::vector<float>> take_logits() { return std::exchange(logits_, {}); }
  void fill(std::byte* memory, size_t bytes, uint8_t value);
  // Where the blocks begin; null before any KV was written.
  std::byte* block_base() const { return block_base_; }

  DType dtype() const override { return inner_->dtype(); }
  void enter_thread() override { inner_->enter_thread(); }
  const char* numerics() const override { return inner_->numerics(); }
  int32_t free_rows() const override { return inner_->free_rows(); }
  void begin_batch() override { inner_->begin_batch(); }
  bool repeat_batch(const BatchKey& key) override { return inner_->repeat_batch(key); }
  void end_batch() override { inner_->end_batch(); }
  void forget_batches() override { inner_->forget_batches(); }
  int32_t padded_rows(int32_t rows) const override { return inner_->padded_rows(rows); }
  bool repeats_batches(int32_t rows) const override { return inner_->repeats_batches(rows); }
  bool returns_early() const override { return inner_->returns_early(); }
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override;
  std::unique_ptr<HostBuffer> allocate_host(size_t bytes) override {
    return inner_->allocate_host(bytes);
  }
  std::unique_ptr<ResultBuffer> allocate_results(size_t bytes) override {
    return inner_->allocate_results(bytes);
  }
  std::unique_ptr<PackedWeight> pack(std::span<const WeightSource> sources) override {
    return inner_->pack(sources);
  }
  std::unique_ptr<PackedWeight> pack_on_host(std::span<const WeightSource> sources) override {
    return inner_->pack_on_host(sources);
  }
  std::unique_ptr<WeightSlot> allocate_weight_slot(size_t bytes) override {
    return inner_->allocate_weight_slot(bytes);
  }
  void fetch(std::span<PackedWeight* const> weights, WeightSlot& slot) override {
    inner_->fetch(weights, slot);
  }
  std::unique_ptr<EmbeddingTable> pack_table(const WeightSource& source,
                                             const PackedWeight* tied) override {
    return inner_->pack_table(source, tied);
  }
  std::unique_ptr<DeviceBuffer> upload(std::span<const WeightSource> sources) override {
    return inner_->upload(sources);
  }
  void embed(const EmbeddingTable& table, std::span<const TokenId> tokens, int32_t first,
             float* out) override {
    inner_->embed(table, tokens, first, out);
  }
  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t hidden,
                std::byte* out) override {
    inner_->rms_norm(x, weight, eps, rows, hidden, out);
  }
  int64_t operand_row_bytes(int64_t k) const override { return inner_->operand_row_bytes(k); }
  void to_operand(const float* x, int64_t rows, int64_t k, std::byte* out) override {
    inner_->to_operand(x, rows, k, out);
  }
  void matmul(const PackedWeight& weight, const std::byte* x, int64_t rows, float* y,
              const float* bias, bool accumulate) override {
    inner_->matmul(weight, x, rows, y, bias, accumulate);
  }
  std::unique_ptr<DeviceBuffer> rope_table(const RopeOptions& options,
                                           int64_t max_positions) override {
    return inner_->rope_table(options, max_positions);
  }
  void rope(float* x, int64_t row_stride, std::span<const int32_t> positions, int32_t heads,
            int32_t head_dim, DeviceBuffer& table) override {
    inner_->rope(x, row_stride, positions, heads, head_dim, table);
  }
  void silu_mul(const float* gate_up, int64_t rows, int64_t inner, std::byte* out) override {
    inner_->silu_mul(gate_up, rows, inner, out);
  }
  void gather_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                   float* out) override {
    inner_->gather_rows(x, ids, hidden, out);
  }
  void scatter_rows(const float* x, std::span<const int32_t> ids, int64_t hidden,
                    float* out) override {
    inner_->scatter_rows(x, ids, hidden, out);
  }
  void stage_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                std::span<const int32_t> ids, const KvRows& staged) override {
    inner_->stage_kv(k, v, row_stride, layout, ids, staged);
  }
  void zero_kv(const KvLayout& layout, std::span<const int32_t> ids,
               const KvRows& staged) override {
    inner_->zero_kv(layout, ids, staged);
  }
  void copy_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& from,
               const KvRows& to) override {
    inner_->copy_kv(layout, ids, from, to);
  }
  void compare_kv(const KvLayout& layout, std::span<const int32_t> ids, const KvRows& fresh,
                  const KvRows& read, KvDistance* out) override {
    inner_->compare_kv(layout, ids, fresh, read, out);
  }
  void append_kv(const float* k, const float* v, int64_t row_stride, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    block_base_ = layout.base;
    inner_->append_kv(k, v, row_stride, layout, blocks, slots);
  }
  void commit_kv(const KvRows& staged, std::span<const int32_t> ids, const KvLayout& layout,
                 std::span<const int32_t> blocks, std::span<const int32_t> slots) override {
    block_base_ = layout.base;
    inner_->commit_kv(staged, ids, layout, blocks, slots);
  }
  void rope_kv(const NewKv& rows, std::span<const int32_t> positions,
               DeviceBuffer& table) override {
    block_base_ = rows.layout.base;
    inner_->rope_kv(rows, positions, table);
  }
  void attention(const AttentionArgs& args) override { inner_->attention(args); }
  void copy(const std::byte* from, std::byte* to, size_t bytes) override {
    inner_->copy(from, to, bytes);
  }
  void copy_block(const std::byte* from, std::byte* to, size_t bytes) override {
    inner_->copy_block(from, to, bytes);
  }
  void copy_columns(const float* from, int64_t from_stride, int64_t rows, int64_t width, float* to,
                    int64_t to_stride) override {
    inner_->copy_columns(from, from_stride, rows, width, to, to_stride);
  }
  void change_logits(float* logits, LogitChange change, std::span<const int32_t> ids,
                     std::span<const float> values) override {
    inner_->change_logits(logits, change, ids, values);
  }
  void logprobs(std::span<const LogprobArgs> rows, int32_t vocabulary) override;
  void sample(std::span<const SampleArgs> rows) override { inner_->sample(rows); }

 protected:
  const Ops& inner() const { return *inner_; }

 private:
  const std::unique_ptr<Ops> inner_;
  const uint8_t fill_;
  std::vector<std::vector<float>> logits_;
  std::byte* block_base_ = nullptr;
};

}  // namespace lckv
