// One block computes up to kBlockQueries queries that share a KV head against tiles of 64
// positions: the scores of a tile, the online softmax (Milakov and Gimelshein, 2018), the weighted
// values. Long histories are cut into pieces whose shares are merged afterwards (split-KV, as in
// Flash-Decoding: Dao et al., 2023). Every score and sum of one query is built in an order that its
// own position, window and history give; which queries share a block changes no bit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_index.h"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/kv_value.cuh"

namespace lckv {

// What the kernels read, all of it on the device.
struct DeviceAttention {
  const float* q = nullptr;
  float* out = nullptr;
  float* log_sum_exp = nullptr;
  int32_t num_heads = 0;
  float scale = 1.0F;
  KvLayout layout;
  KvRows staged;
  const int32_t* blocks = nullptr;
  const int32_t* staged_rows = nullptr;
  const HistoryRun* runs = nullptr;
  const SegmentPlan* segments = nullptr;
  const SeenRange* seen = nullptr;
  const AttentionItem* items = nullptr;
  const MergeItem* merges = nullptr;
  // Shares of pieces, [partial][KV head and chunk][query]: sums of head_dim floats each; and tops
  // and norms, two floats each.
  float* partial_sums = nullptr;
  float* partial_norms = nullptr;
};

inline constexpr int kAttentionThreads = 128;
inline constexpr float kNothing = -INFINITY;

// Adds the zero key where the row sees it: its score is zero and so is its value. Gives the factor
// of the sums.
__device__ inline float add_zero_key(const SeenRange& seen, float& top, float& norm) {
  if (seen.zero_key == 0) return 1.0F;
  const float before = top;
  top = fmaxf(before, 0.0F);
  const float shrink = expf(before - top);
  norm = norm * shrink + expf(-top);
  return shrink;
}

template <class Value, int kHeadDim, class Mask>
class AttentionBlock {
 public:
  // A thread sums two neighbouring elements of values, over one of so many parts of the positions.
  static constexpr int kPairs = kHeadDim / 2;
  static constexpr int kParts = kAttentionThreads / kPairs;
  static constexpr int kChunkValues = 16 / sizeof(Value);
  // Keys are brought in by pieces of rows that fit, each row shifted against the banks.
  static constexpr int kPieceValues = kHeadDim * sizeof(Value) > 512 ? 128 : kHeadDim;
  static constexpr int kKeyStride = kPieceValues + kChunkValues;
  static constexpr int kKeyBytes = kAttentionTile * kKeyStride * sizeof(Value);
  static constexpr int kSumBytes = kParts * kBlockQueries * kHeadDim * sizeof(float);

  struct Shared {
    float q[kBlockQueries][kHeadDim];
    float scores[kBlockQueries][kAttentionTile];
    float weights[kAttentionTile][kBlockQueries];
    float tops[kBlockQueries];
    float norms[kBlockQueries];
    float shrinks[kBlockQueries];
    SeenRange seen[kBlockQueries];
    AttentionItem item;
    SegmentPlan segment;
    const Value* keys[kAttentionTile];  // of the tile's positions; null: there is none
    const Value* values[kAttentionTile];
    alignas(16) std::byte tile[kKeyBytes > kSumBytes ? kKeyBytes : kSumBytes];
  };

  __device__ AttentionBlock(const DeviceAttention& args, Shared& shared)
      : args_(args),
        shared_(shared),
        shape_(args.num_heads, args.layout.kv_heads),
        kv_head_(static_cast<int32_t>(blockIdx.y) / shape_.chunks),
        chunk_(static_cast<int32_t>(blockIdx.y) % shape_.chunks),
        num_queries_(args.items[blockIdx.x].num_rows * shape_.heads),
        thread_(static_cast<int>(threadIdx.x)),
        pair_(thread_ % kPairs),
        part_(thread_ / kPairs) {}

  __device__ void run() {
    if (thread_ == 0) {
      shared_.item = args_.items[blockIdx.x];
      shared_.segment = args_.segments[shared_.item.segment];
    }
    __syncthreads();
    load_queries();
    for (int32_t tile = first_tile_of(shared_.item); tile < shared_.item.end_tile;
         tile = tile_after(shared_.item, tile)) {
      locate(tile * kAttentionTile);
      score(tile * kAttentionTile);
      weigh();
      add_values();
    }
    gather_parts();
    write();
  }

 private:
  __device__ bool is_query(int32_t query) const {
    return query < num_queries_ && shape_.head_of(query, chunk_) < shape_.heads_per_kv;
  }
  __device__ int64_t head_row(int32_t query) const {
    const int64_t row = shared_.item.row_begin + shape_.row_of(query);
    return row * args_.num_heads + kv_head_ * shape_.heads_per_kv + shape_.head_of(query, chunk_);
  }

  __device__ void load_queries() {
    for (int i = thread_; i < kBlockQueries * kHeadDim; i += kAttentionThreads) {
      const int query = i / kHeadDim;
      const int at = i % kHeadDim;
      shared_.q[query][at] = is_query(query) ? args_.q[head_row(query) * kHeadDim + at] : 0.0F;
    }
    if (thread_ < kBlockQueries) {
      shared_.tops[thread_] = kNothing;
      shared_.norms[thread_] = 0.0F;
      shared_.seen[thread_] = is_query(thread_)
                                  ? args_.seen[shared_.item.row_begin + shape_.row_of(thread_)]
                                  : SeenRange{};
    }
    __syncthreads();
  }

  // Where the tile's keys and values lie.
  __device__ void locate(int32_t base) {
    if (thread_ < kAttentionTile) {
      const int32_t position = base + thread_;
      const int32_t entry =
          entry_at(args_.runs + shared_.segment.first_run, shared_.segment.num_runs,
                   shared_.segment.num_entries, position);
      bool seen = false;
      for (int query = 0; query < num_queries_; ++query) {
        seen = seen || Mask::sees(shared_.seen[query], position);
      }
      const Value* key = nullptr;
      const Value* value = nullptr;
      if (entry >= 0 && seen) point_at(entry, key, value);
      shared_.keys[thread_] = key;
      shared_.values[thread_] = value;
    }
    __syncthreads();
  }

  __device__ void point_at(int32_t entry, const Value*& key, const Value*& value) const {
    const KvLayout& layout = args_.layout;
    if (entry < shared_.segment.num_slots) {
      const int32_t slots = layout.slots_per_block;
      const int32_t block = args_.blocks[shared_.segment.first_block + entry / slots];
      key = reinterpret_cast<const Value*>(layout.base + block * layout.block_bytes) +
            (int64_t{kv_head_} * slots + entry % slots) * kHeadDim;
      value = key + int64_t{layout.kv_heads} * slots * kHeadDim;
      return;
    }
    const int32_t staged = entry - shared_.segment.num_slots;
    const int64_t at =
        (int64_t{args_.staged_rows[shared_.segment.first_staged + staged]} * layout.kv_heads +
         kv_head_) *
        kHeadDim;
    key = reinterpret_cast<const Value*>(args_.staged.k) + at;
    value = reinterpret_cast<const Value*>(args_.staged.v) + at;
  }

  // Two threads share a key, each for half of the queries.
  __device__ void score(int32_t base) {
    constexpr int kHalf = kBlockQueries / 2;
    const int lane = thread_ % kAttentionTile;
    const int first = thread_ / kAttentionTile * kHalf;
    float sums[kHalf] = {};
    for (int begin = 0; begin < kHeadDim; begin += kPieceValues) {
      load_keys(begin);
      const Value* const key = keys() + lane * kKeyStride;
      for (int at = 0; at < kPieceValues; at += kChunkValues) {
        const Chunk values = *reinterpret_cast<const Chunk*>(key + at);
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
#pragma unroll
          for (int e = 0; e < kChunkValues; ++e) {
            sums[i] =
                fmaf(shared_.q[first + i][begin + at + e], widened(values.values[e]), sums[i]);
          }
        }
      }
      __syncthreads();
    }
    const bool present = shared_.keys[lane] != nullptr;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const bool sees = present && Mask::sees(shared_.seen[first + i], base + lane);
      shared_.scores[first + i][lane] = sees ? sums[i] * args_.scale : kNothing;
    }
    __syncthreads();
  }

  struct alignas(16) Chunk {
    Value values[kChunkValues];
  };
  __device__ Value* keys() const { return reinterpret_cast<Value*>(shared_.tile); }

  __device__ void load_keys(int begin) {
    constexpr int kChunks = kPieceValues / kChunkValues;
    for (int i = thread_; i < kAttentionTile * kChunks; i += kAttentionThreads) {
      const int lane = i / kChunks;
      const int at = i % kChunks * kChunkValues;
      const Value* const key = shared_.keys[lane];
      if (key == nullptr) continue;  // its scores are dropped
      *reinterpret_cast<Chunk*>(keys() + lane * kKeyStride + at) =
          *reinterpret_cast<const Chunk*>(key + begin + at);
    }
    __syncthreads();
  }

  // Turns scores into weights relative to the new maximum: two queries per warp, two positions per
  // lane.
  __device__ void weigh() {
    constexpr int kPerWarp = kBlockQueries / (kAttentionThreads / kWarpThreads);
    const int lane = thread_ % kWarpThreads;
    for (int i = 0; i < kPerWarp; ++i) {
      const int query = thread_ / kWarpThreads * kPerWarp + i;
      const float low = shared_.scores[query][lane];
      const float high = shared_.scores[query][lane + kWarpThreads];
      const float before = shared_.tops[query];
      float top = fmaxf(low, high);
      for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
        top = fmaxf(top, __shfl_xor_sync(~0U, top, distance));
      }
      top = fmaxf(top, before);
      const float low_weight = low == kNothing ? 0.0F : expf(low - top);
      const float high_weight = high == kNothing ? 0.0F : expf(high - top);
      const float norm = warp_sum(low_weight + high_weight);
      shared_.weights[lane][query] = low_weight;
      shared_.weights[lane + kWarpThreads][query] = high_weight;
      __syncwarp();
      if (lane == 0) {
        // Nothing seen so far and in this tile: the sums are zeros, and remain so.
        const float shrink = top == kNothing ? 1.0F : expf(before - top);
        shared_.shrinks[query] = shrink;
        shared_.norms[query] = shared_.norms[query] * shrink + norm;
        shared_.tops[query] = top;
      }
    }
    __syncthreads();
  }

  __device__ void add_values() {
    if (part_ < kParts) {
#pragma unroll
      for (int query = 0; query < kBlockQueries; ++query) {
        sums_[query][0] *= shared_.shrinks[query];
        sums_[query][1] *= shared_.shrinks[query];
      }
      for (int lane = part_; lane < kAttentionTile; lane += kParts) {
        const Value* const value = shared_.values[lane];
        if (value == nullptr) continue;
        const float low = widened(value[2 * pair_]);
        const float high = widened(value[2 * pair_ + 1]);
#pragma unroll
        for (int query = 0; query < kBlockQueries; ++query) {
          const float weight = shared_.weights[lane][query];
          // A query must not meet what only a neighbour sees: it may be infinite.
          if (weight == 0.0F) continue;
          sums_[query][0] = fmaf(weight, low, sums_[query][0]);
          sums_[query][1] = fmaf(weight, high, sums_[query][1]);
        }
      }
    }
    __syncthreads();
  }

  // The parts' sums, added in order, end up where the first part's were.
  __device__ void gather_parts() {
    auto* const parts = reinterpret_cast<float*>(shared_.tile);
    if (part_ < kParts) {
#pragma unroll
      for (int query = 0; query < kBlockQueries; ++query) {
        float* const to = parts + (part_ * kBlockQueries + query) * kHeadDim + 2 * pair_;
        to[0] = sums_[query][0];
        to[1] = sums_[query][1];
      }
    }
    __syncthreads();
    for (int i = thread_; i < kBlockQueries * kHeadDim; i += kAttentionThreads) {
      float sum = parts[i];
      for (int part = 1; part < kParts; ++part) sum += parts[part * kBlockQueries * kHeadDim + i];
      parts[i] = sum;
    }
    __syncthreads();
  }

  __device__ void write() {
    const auto* const sums = reinterpret_cast<const float*>(shared_.tile);
    for (int i = thread_; i < num_queries_ * kHeadDim; i += kAttentionThreads) {
      const int query = i / kHeadDim;
      const int at = i % kHeadDim;
      float top = shared_.tops[query];
      float norm = shared_.norms[query];
      if (shared_.item.partial >= 0) {
        const int64_t partial =
            (int64_t{shared_.item.partial} * gridDim.y + blockIdx.y) * kBlockQueries + query;
        args_.partial_sums[partial * kHeadDim + at] = sums[i];
        if (at < 2) args_.partial_norms[2 * partial + at] = at == 0 ? top : norm;
        continue;
      }
      if (!is_query(query)) continue;
      const float sum = sums[i] * add_zero_key(shared_.seen[query], top, norm);
      const bool seen = norm != 0.0F;  // NaN is not nothing: it must reach the output
      args_.out[head_row(query) * kHeadDim + at] = seen ? sum / norm : 0.0F;
      if (at == 0 && args_.log_sum_exp != nullptr) {
        args_.log_sum_exp[head_row(query)] = seen ? top + logf(norm) : kNothing;
      }
    }
  }

  const DeviceAttention& args_;
  Shared& shared_;
  const QueryShape shape_;
  const int32_t kv_head_;
  const int32_t chunk_;
  const int32_t num_queries_;
  const int thread_;
  const int pair_;
  const int part_;  // threads beyond the last part only help to load
  float sums_[kBlockQueries][2] = {};
};

// Grid: items by (KV heads and chunks).
template <class Value, int kHeadDim, class Mask>
__global__ void __launch_bounds__(kAttentionThreads) attention_kernel(const DeviceAttention args) {
  using Block = AttentionBlock<Value, kHeadDim, Mask>;
  // As bytes: shared memory is never constructed.
  alignas(16) __shared__ std::byte shared[sizeof(typename Block::Shared)];
  Block(args, reinterpret_cast<typename Block::Shared&>(shared)).run();
}

}  // namespace lckv
