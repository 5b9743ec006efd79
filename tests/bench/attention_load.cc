#include "tests/bench/attention_load.h"

#include <cmath>
#include <numeric>

#include "tests/bench/device_limits.h"

namespace lckv::bench {
namespace {

constexpr int32_t kSlotsPerBlock = 16;
// More than there are blocks in any size that is measured, and prime: no two fall on one place.
constexpr int64_t kScatter = 1'000'003;

}  // namespace

AttentionLoad::AttentionLoad(Ops& ops, const AttentionShape& shape)
    : ops_(ops),
      shape_(shape),
      blocks_per_sequence_((shape.context + kSlotsPerBlock - 1) / kSlotsPerBlock),
      slot_positions_(shape.context) {
  const int64_t num_blocks = int64_t{shape.num_sequences} * blocks_per_sequence_;
  const int64_t block_numbers = int64_t{2} * kSlotsPerBlock * shape.kv_heads * shape.head_dim;
  kv_ = made_up_numbers(ops, ops.dtype(), static_cast<size_t>(num_blocks * block_numbers));
  const int32_t num_heads = shape.kv_heads * shape.heads_per_kv;
  const int64_t num_rows = int64_t{shape.num_sequences} * shape.num_rows;
  q_ = made_up_numbers(ops, DType::kFloat32,
                       static_cast<size_t>(num_rows * num_heads * shape.head_dim));
  out_ = ops.allocate(
      static_cast<size_t>(num_rows * ops.operand_row_bytes(int64_t{num_heads} * shape.head_dim)));
  for (int64_t i = 0; i < num_blocks; ++i) {
    blocks_.push_back(static_cast<int32_t>(i * kScatter % num_blocks));
  }
  std::iota(slot_positions_.begin(), slot_positions_.end(), 0);
  for (int32_t i = 0; i < shape.num_sequences; ++i) add_sequence(i);
  args_ = {.q = q_->floats(),
           .out = out_->data(),
           .positions = positions_.data(),
           .num_heads = num_heads,
           .scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim)),
           .layout = {.base = kv_->data(),
                      .block_bytes = block_numbers * static_cast<int64_t>(dtype_bytes(ops.dtype())),
                      .slots_per_block = kSlotsPerBlock,
                      .kv_heads = shape.kv_heads,
                      .head_dim = shape.head_dim,
                      .dtype = ops.dtype()},
           .segments = segments_};
}

void AttentionLoad::add_sequence(int32_t index) {
  const int32_t first_row = index * shape_.num_rows;
  segments_.push_back({.row_begin = first_row,
                       .row_end = first_row + shape_.num_rows,
                       .blocks = &blocks_[int64_t{index} * blocks_per_sequence_],
                       .slot_positions = slot_positions_.data(),
                       .num_slots = shape_.context});
  for (int32_t i = shape_.context - shape_.num_rows; i < shape_.context; ++i) {
    positions_.push_back(i);
  }
}

double AttentionLoad::kv_bytes() const {
  return 2.0 * shape_.num_sequences * shape_.context * shape_.kv_heads * shape_.head_dim *
         static_cast<double>(dtype_bytes(ops_.dtype()));
}

double AttentionLoad::operations() const {
  double seen = 0.0;
  for (const int32_t position : positions_) seen += position + 1;
  return 4.0 * seen * shape_.kv_heads * shape_.heads_per_kv * shape_.head_dim;
}

}  // namespace lckv::bench
