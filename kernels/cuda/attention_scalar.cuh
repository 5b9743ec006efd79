// Attention over float32 keys and values. One block computes up to kScalarQueries queries that
// share a KV head against tiles of 64 positions: the scores of a tile, the online softmax (Milakov
// and Gimelshein, 2018), the weighted values. Long histories are cut into pieces whose shares are
// merged afterwards (split-KV, as in Flash-Decoding: Dao et al., 2023). Every score and sum of one
// query is built in an order that its own position, window and history give; which queries share a
// block changes no bit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/block_sums.cuh"

namespace lckv {

template <int kHeadDim, class Mask>
class ScalarAttention {
 public:
  // A thread sums two neighbouring elements of values, over one of so many parts of the positions.
  static constexpr int kPairs = kHeadDim / 2;
  static constexpr int kParts = kAttentionThreads / kPairs;
  static constexpr int kChunkValues = 16 / sizeof(float);
  // Keys are brought in by pieces of rows that fit, each row shifted against the banks.
  static constexpr int kPieceValues = kHeadDim > 128 ? 128 : kHeadDim;
  static constexpr int kKeyStride = kPieceValues + kChunkValues;
  static constexpr int kKeyBytes = kAttentionTile * kKeyStride * sizeof(float);
  static constexpr int kSumBytes = kParts * kScalarQueries * kHeadDim * sizeof(float);

  struct Shared {
    float q[kScalarQueries][kHeadDim];
    float scores[kScalarQueries][kAttentionTile];
    float weights[kAttentionTile][kScalarQueries];
    float tops[kScalarQueries];
    float norms[kScalarQueries];
    float shrinks[kScalarQueries];
    SeenRange seen[kScalarQueries];
    KvPlace<float> places[kAttentionTile];  // of the tile's positions
    alignas(16) std::byte tile[kKeyBytes > kSumBytes ? kKeyBytes : kSumBytes];
  };

  __device__ ScalarAttention(const DeviceAttention& args, Shared& shared)
      : args_(args),
        item_(args.items[blockIdx.x]),
        shared_(shared),
        queries_(args, item_.row_begin, item_.num_rows),
        thread_(static_cast<int>(threadIdx.x)),
        pair_(thread_ % kPairs),
        part_(thread_ / kPairs) {}

  __device__ void run() {
    if (item_.num_rows == 0) return;  // fills the room of a recorded plan
    load_queries();
    for (int32_t tile = first_tile_of(item_); tile < item_.end_tile;
         tile = tile_after(item_, tile)) {
      locate(tile * kAttentionTile);
      score(tile * kAttentionTile);
      weigh();
      add_values();
    }
    gather_parts();
    write();
  }

 private:
  __device__ void load_queries() {
    for (int i = thread_; i < kScalarQueries * kHeadDim; i += kAttentionThreads) {
      const int query = i / kHeadDim;
      const int at = i % kHeadDim;
      shared_.q[query][at] = queries_.contains(query)
                                 ? args_.q[queries_.head_row(args_, query) * kHeadDim + at]
                                 : 0.0F;
    }
    if (thread_ < kScalarQueries) {
      shared_.tops[thread_] = kNothing;
      shared_.norms[thread_] = 0.0F;
      shared_.seen[thread_] =
          queries_.contains(thread_) ? args_.seen[queries_.row(thread_)] : SeenRange{};
    }
    __syncthreads();
  }

  // Where the tile's keys and values lie.
  __device__ void locate(int32_t base) {
    if (thread_ < kAttentionTile) {
      const int32_t position = base + thread_;
      shared_.places[thread_] =
          Mask::sees(item_.any, position)
              ? kv_place<float>(args_, args_.segments[item_.segment], queries_.kv_head(), position)
              : KvPlace<float>{};
    }
    __syncthreads();
  }

  // Two threads share a key, each for half of the queries.
  __device__ void score(int32_t base) {
    constexpr int kHalf = kScalarQueries / 2;
    const int lane = thread_ % kAttentionTile;
    const int first = thread_ / kAttentionTile * kHalf;
    float sums[kHalf] = {};
    for (int begin = 0; begin < kHeadDim; begin += kPieceValues) {
      load_keys(begin);
      const float* const key = keys() + lane * kKeyStride;
      for (int at = 0; at < kPieceValues; at += kChunkValues) {
        const Chunk values = *reinterpret_cast<const Chunk*>(key + at);
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
#pragma unroll
          for (int e = 0; e < kChunkValues; ++e) {
            sums[i] = fmaf(shared_.q[first + i][begin + at + e], values.values[e], sums[i]);
          }
        }
      }
      __syncthreads();
    }
    const bool present = shared_.places[lane].key != nullptr;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const bool sees = present && Mask::sees(shared_.seen[first + i], base + lane);
      shared_.scores[first + i][lane] = sees ? sums[i] * args_.scale : kNothing;
    }
    __syncthreads();
  }

  struct alignas(16) Chunk {
    float values[kChunkValues];
  };
  __device__ float* keys() const { return reinterpret_cast<float*>(shared_.tile); }

  __device__ void load_keys(int begin) {
    constexpr int kChunks = kPieceValues / kChunkValues;
    for (int i = thread_; i < kAttentionTile * kChunks; i += kAttentionThreads) {
      const int lane = i / kChunks;
      const int at = i % kChunks * kChunkValues;
      const float* const key = shared_.places[lane].key;
      if (key == nullptr) continue;  // its scores are dropped
      *reinterpret_cast<Chunk*>(keys() + lane * kKeyStride + at) =
          *reinterpret_cast<const Chunk*>(key + begin + at);
    }
    __syncthreads();
  }

  // Turns scores into weights relative to the new maximum: two queries per warp, two positions per
  // lane.
  __device__ void weigh() {
    constexpr int kPerWarp = kScalarQueries / (kAttentionThreads / kWarpThreads);
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
      for (int query = 0; query < kScalarQueries; ++query) {
        sums_[query][0] *= shared_.shrinks[query];
        sums_[query][1] *= shared_.shrinks[query];
      }
      for (int lane = part_; lane < kAttentionTile; lane += kParts) {
        const float* const value = shared_.places[lane].value;
        if (value == nullptr) continue;
        const float low = value[2 * pair_];
        const float high = value[2 * pair_ + 1];
#pragma unroll
        for (int query = 0; query < kScalarQueries; ++query) {
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
      for (int query = 0; query < kScalarQueries; ++query) {
        float* const to = parts + (part_ * kScalarQueries + query) * kHeadDim + 2 * pair_;
        to[0] = sums_[query][0];
        to[1] = sums_[query][1];
      }
    }
    __syncthreads();
    for (int i = thread_; i < kScalarQueries * kHeadDim; i += kAttentionThreads) {
      float sum = parts[i];
      for (int part = 1; part < kParts; ++part) sum += parts[part * kScalarQueries * kHeadDim + i];
      parts[i] = sum;
    }
    __syncthreads();
  }

  __device__ void write() {
    const auto* const sums = reinterpret_cast<const float*>(shared_.tile);
    for (int i = thread_; i < queries_.count() * kHeadDim; i += kAttentionThreads) {
      const int query = i / kHeadDim;
      const int at = i % kHeadDim;
      const float top = shared_.tops[query];
      const float norm = shared_.norms[query];
      if (item_.partial >= 0) {
        const int64_t share = queries_.share(item_.partial, query);
        args_.partial_sums[share * kHeadDim + at] = sums[i];
        if (at < 2) args_.partial_norms[2 * share + at] = at == 0 ? top : norm;
        continue;
      }
      if (!queries_.contains(query)) continue;
      const QueryTotal total(shared_.seen[query], top, norm);
      const int64_t head_row = queries_.head_row(args_, query);
      reinterpret_cast<float*>(args_.out)[head_row * kHeadDim + at] = total.element(sums[i]);
      if (at == 0 && args_.log_sum_exp != nullptr) {
        args_.log_sum_exp[head_row] = total.log_sum_exp();
      }
    }
  }

  const DeviceAttention& args_;
  const AttentionItem& item_;
  Shared& shared_;
  const BlockQueries queries_;
  const int thread_;
  const int pair_;
  const int part_;  // threads beyond the last part only help to load
  float sums_[kScalarQueries][2] = {};
};

// Grid: items by (KV heads and chunks).
template <int kHeadDim, class Mask>
__global__ void __launch_bounds__(kAttentionThreads)
    scalar_attention_kernel(const DeviceAttention args) {
  using Block = ScalarAttention<kHeadDim, Mask>;
  // As bytes: shared memory is never constructed.
  alignas(16) __shared__ std::byte shared[sizeof(typename Block::Shared)];
  Block(args, reinterpret_cast<typename Block::Shared&>(shared)).run();
}

}  // namespace lckv
