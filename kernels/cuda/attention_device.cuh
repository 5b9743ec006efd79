// What the kernels of attention share: their arguments, which queries a block computes, where keys
// and values lie, and how sums become results.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_index.h"

namespace lckv {

// What the kernels read, all of it on the device.
struct DeviceAttention {
  const float* q = nullptr;
  std::byte* out = nullptr;  // in the layout's dtype
  float* log_sum_exp = nullptr;
  int32_t num_heads = 0;
  float scale = 1.0F;
  QueryShape shape;
  KvLayout layout;
  KvRows staged;
  const int32_t* blocks = nullptr;
  const int32_t* staged_rows = nullptr;
  const HistoryRun* runs = nullptr;
  const SegmentPlan* segments = nullptr;
  const SeenRange* seen = nullptr;
  const AttentionItem* items = nullptr;
  const MergeItem* merges = nullptr;
  // Shares of pieces, [partial][KV head and chunk][head]: sums of head_dim floats each; and tops
  // and norms, two floats each.
  float* partial_sums = nullptr;
  float* partial_norms = nullptr;
};

using AttentionKernel = void (*)(DeviceAttention);

inline constexpr int kAttentionThreads = 128;
inline constexpr float kNothing = -INFINITY;

// The queries that a block computes, some of which may be none; blockIdx.y is KV head and chunk.
class BlockQueries {
 public:
  __device__ BlockQueries(const DeviceAttention& args, int32_t row_begin, int32_t num_rows)
      : shape_(args.shape),
        kv_head_(static_cast<int32_t>(blockIdx.y) / shape_.chunks),
        chunk_(static_cast<int32_t>(blockIdx.y) % shape_.chunks),
        row_begin_(row_begin),
        count_(num_rows * shape_.heads),
        first_head_(kv_head_ * shape_.heads_per_kv) {}

  __device__ int32_t kv_head() const { return kv_head_; }
  __device__ int32_t count() const { return count_; }
  __device__ bool contains(int32_t query) const {
    return query < count_ && shape_.head_of(query, chunk_) < shape_.heads_per_kv;
  }
  __device__ int32_t row(int32_t query) const { return row_begin_ + shape_.row_of(query); }
  // Of [rows, num_heads].
  __device__ int64_t head_row(const DeviceAttention& args, int32_t query) const {
    return int64_t{row(query)} * args.num_heads + first_head_ + shape_.head_of(query, chunk_);
  }
  // Of the shares, where those of the block's rows begin at `partial`.
  __device__ int64_t share(int32_t partial, int32_t query) const {
    return (int64_t{partial + shape_.row_of(query)} * gridDim.y + blockIdx.y) * shape_.heads +
           query % shape_.heads;
  }

 private:
  const QueryShape& shape_;
  const int32_t kv_head_;
  const int32_t chunk_;
  const int32_t row_begin_;
  const int32_t count_;
  const int32_t first_head_;
};

template <class Value>
struct KvPlace {
  const Value* key = nullptr;  // null: there is none
  const Value* value = nullptr;
};

// Where the position's key and value of a head lie, if the history has it.
template <class Value>
__device__ KvPlace<Value> kv_place(const DeviceAttention& args, const SegmentPlan& segment,
                                   int32_t kv_head, int32_t position) {
  const int32_t entry =
      entry_at(args.runs + segment.first_run, segment.num_runs, segment.num_entries, position);
  if (entry < 0) return {};
  const KvLayout& layout = args.layout;
  if (entry < segment.num_slots) {
    const int32_t slots = layout.slots_per_block;
    const int32_t block = args.blocks[segment.first_block + entry / slots];
    const Value* const key =
        reinterpret_cast<const Value*>(layout.base + block * layout.block_bytes) +
        (int64_t{kv_head} * slots + entry % slots) * layout.head_dim;
    return {key, key + int64_t{layout.kv_heads} * slots * layout.head_dim};
  }
  const int32_t staged = args.staged_rows[segment.first_staged + entry - segment.num_slots];
  const int64_t at = (int64_t{staged} * layout.kv_heads + kv_head) * layout.head_dim;
  return {reinterpret_cast<const Value*>(args.staged.k) + at,
          reinterpret_cast<const Value*>(args.staged.v) + at};
}

// A query whose whole history was met: its largest score and the sum of its weights relative to
// that, beside which the zero key stands where the row sees it. That key's score is zero, and so is
// its value.
class QueryTotal {
 public:
  __device__ QueryTotal(const SeenRange& seen, float top, float norm) : top_(top), norm_(norm) {
    if (seen.zero_key == 0) return;
    top_ = fmaxf(top, 0.0F);
    shrink_ = expf(top - top_);
    norm_ = norm * shrink_ + expf(-top_);
  }
  // Of the result, from the weighted sum of values. NaN is not nothing: it must reach the output.
  __device__ float element(float sum) const { return norm_ != 0.0F ? sum * shrink_ / norm_ : 0.0F; }
  __device__ float log_sum_exp() const { return norm_ != 0.0F ? top_ + logf(norm_) : kNothing; }

 private:
  float top_;
  float norm_;
  float shrink_ = 1.0F;
};

}  // namespace lckv
