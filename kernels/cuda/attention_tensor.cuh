// Attention over keys and values of 16 bits on tensor cores (FlashAttention-2: Dao, 2023): four
// warps of 16 queries each share a KV head's keys and values, which come into shared memory a step
// ahead of their use. Scores, weights and sums stay in registers.
//
// Rounded to their format are queries, before the scores, and weights exp(score - largest so far),
// before they meet the values; products are exact, everything else is float32, and the sum of the
// weights is of those not rounded. Steps are fixed pieces of tiles of 64 positions, and a row of a
// product depends on its own operands alone, so that which queries share a block changes no bit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/tensor_core.cuh"

namespace lckv {

// How wide heads are cut to what a warp's registers and a block's shared memory hold.
template <int kHeadDim>
struct TensorShape {
  // Warps that share 16 queries: each computes all their scores, and the sums of its columns.
  static constexpr int kParts = kHeadDim > 128 ? 2 : 1;
  static constexpr int kColumns = kHeadDim / kParts;
  static constexpr int kThreads = kAttentionThreads * kParts;
  // Positions of a step.
  static constexpr int kStep = kAttentionTile / kParts;
};

template <int kHeadDim>
struct TensorShared {
  static constexpr int kStep = TensorShape<kHeadDim>::kStep;

  struct Stage {
    uint16_t keys[kStep * kHeadDim];  // chunks of 16 bytes, as swizzled_chunk has them
    uint16_t values[kStep * kHeadDim];
  };
  struct Places {
    KvPlace<uint16_t> at[kStep];
    uint32_t present[kStep / kWarpThreads];  // a bit for each position
    uint32_t seen_by_all[kStep / kWarpThreads];
  };
  // Of this step and the next.
  Stage stages[2];
  // One more: places are looked up before they are fetched from.
  Places places[3];
};

template <class Value, int kHeadDim, class Mask>
class TensorAttention {
 public:
  using Shared = TensorShared<kHeadDim>;
  using Stage = typename Shared::Stage;
  using Places = typename Shared::Places;
  // What a block may have where it may have the least: 99 KiB (compute capability 8.6 and 8.9).
  static_assert(sizeof(Shared) <= size_t{99} << 10);
  static constexpr int kStep = TensorShape<kHeadDim>::kStep;
  static constexpr int kParts = TensorShape<kHeadDim>::kParts;
  static constexpr int kColumns = TensorShape<kHeadDim>::kColumns;
  static constexpr int kThreads = TensorShape<kHeadDim>::kThreads;
  static constexpr int kChunkValues = 8;
  static constexpr int kChunkBytes = 16;
  // Of 16 rows, after which swizzled chunks repeat.
  static constexpr int kRowsBytes = 16 * kHeadDim * sizeof(uint16_t);
  static constexpr int kChunks = kHeadDim / kChunkValues;  // of a key or value
  static constexpr int kWarpQueries = 16;
  static_assert(kTensorQueries == kThreads / kWarpThreads / kParts * kWarpQueries);

  __device__ TensorAttention(const DeviceAttention& args, Shared& shared)
      : args_(args),
        item_(args.items[blockIdx.x]),
        shared_(shared),
        queries_(args, item_.row_begin, item_.num_rows),
        first_query_(static_cast<int>(threadIdx.x / kWarpThreads) / kParts * kWarpQueries),
        part_(static_cast<int>(threadIdx.x / kWarpThreads) % kParts),
        lane_(static_cast<int>(threadIdx.x % kWarpThreads)),
        group_(lane_ / 4),
        pair_(lane_ % 4) {}

  __device__ void run() {
    if (item_.num_rows == 0) return;  // fills the room of a recorded plan
    load_queries();
    const int32_t end = item_.end_tile * kAttentionTile;
    // Three steps at a time, by their first positions, each in one of the states that it passes
    // through: of two there is none at first.
    int32_t located = first_tile_of(item_) * kAttentionTile;
    int32_t fetched = end;
    int32_t added = end;
    for (int step = -2; step < 0 || added < end; ++step) {
      cp_async_wait();
      // What is added has arrived, all are done with what is overwritten now, the places that are
      // fetched from are known.
      __syncthreads();
      if (fetched < end) fetch(step + 1);
      if (located < end) locate(located, step + 2);
      if (added < end && first_query_ < queries_.count()) add_step(added, step);
      added = fetched;
      fetched = located;
      located = base_after(located);
    }
    write();
  }

 private:
  // The row of the warp's 16 that elements `half` of the lane's fragments belong to.
  __device__ int32_t query_of(int half) const {
    return first_query_ + group_ + half * kWarpQueries / 2;
  }

  __device__ int32_t base_after(int32_t base) const {
    const int32_t next = base + kStep;
    return next % kAttentionTile != 0 ? next
                                      : tile_after(item_, base / kAttentionTile) * kAttentionTile;
  }

  __device__ void load_queries() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t query = query_of(half);
      seen_[half] = queries_.contains(query) ? args_.seen[queries_.row(query)] : SeenRange{};
    }
    const float* const low = query_row(0);
    const float* const high = query_row(1);
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const int column = 16 * k + 2 * pair_;
      q_[k] = {pair_of(low, column), pair_of(high, column), pair_of(low, column + 8),
               pair_of(high, column + 8)};
    }
  }
  // Null: there is none.
  __device__ const float* query_row(int half) const {
    const int32_t query = query_of(half);
    return queries_.contains(query) ? args_.q + queries_.head_row(args_, query) * kHeadDim
                                    : nullptr;
  }
  __device__ static uint32_t pair_of(const float* row, int column) {
    return row == nullptr ? 0 : pack<Value>(row[column], row[column + 1]);
  }

  // Where the step's keys and values lie. Left to the last warps, which may have no queries.
  __device__ void locate(int32_t base, int step) {
    const int at = static_cast<int>(threadIdx.x) - (kThreads - kStep);
    if (at < 0) return;
    const int32_t position = base + at;
    KvPlace<uint16_t> place;
    if (Mask::sees(item_.any, position)) {
      place =
          kv_place<uint16_t>(args_, args_.segments[item_.segment], queries_.kv_head(), position);
    }
    Places& places = shared_.places[step % 3];
    places.at[at] = place;
    const bool is_present = place.key != nullptr;
    const uint32_t present = __ballot_sync(~0U, is_present);
    const uint32_t by_all = __ballot_sync(~0U, is_present && Mask::sees(item_.all, position));
    if (lane_ != 0) return;
    places.present[at / kWarpThreads] = present;
    places.seen_by_all[at / kWarpThreads] = by_all;
  }

  __device__ void fetch(int step) {
    const Places& places = shared_.places[step % 3];
    Stage& stage = shared_.stages[step % 2];
    const SharedAddress keys = shared_address(stage.keys);
    const SharedAddress values = shared_address(stage.values);
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < kStep * kChunks; i += kThreads) {
      const uint32_t row = i / kChunks;
      const uint32_t chunk = i % kChunks;
      const uint32_t to = swizzled_chunk(kChunks, row, chunk);
      const KvPlace<uint16_t> from = places.at[row];
      if (from.key != nullptr) {
        cp_async16(keys + to * kChunkBytes, from.key + chunk * kChunkValues);
        cp_async16(values + to * kChunkBytes, from.value + chunk * kChunkValues);
      } else {
        // A weight of zero must meet a finite value. Scores of such keys are dropped.
        reinterpret_cast<uint4*>(stage.values)[to] = uint4{};
      }
    }
  }

  __device__ void add_step(int32_t base, int step) {
    const Places& places = shared_.places[step % 3];
    const Stage& stage = shared_.stages[step % 2];
    float scores[kStep / 8][4] = {};
    score(stage, scores);
    mask(places, base, scores);
    uint4 weights[kStep / 16];
    weigh(scores, weights);
    if (has_infinite(stage, some_see_alone(places))) {
      add_values_by_row(stage, base, weights);
    } else {
      add_values(stage, weights);
    }
  }

  __device__ static SharedAddress chunk_address(const uint16_t* rows, int row, int chunk) {
    return shared_address(rows) + swizzled_chunk(kChunks, row, chunk) * kChunkBytes;
  }

  __device__ void score(const Stage& stage, float (&scores)[kStep / 8][4]) const {
    const int row = lane_ / 16 * 8 + lane_ % 8;
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const SharedAddress keys = chunk_address(stage.keys, row, 2 * k + lane_ / 8 % 2);
#pragma unroll
      for (int n = 0; n < kStep / 16; ++n) {
        const uint4 fragment = ldmatrix(keys + n * kRowsBytes);
        mma<Value>(scores[2 * n], q_[k], fragment.x, fragment.y);
        mma<Value>(scores[2 * n + 1], q_[k], fragment.z, fragment.w);
      }
    }
  }

  // In positions from the lane's first one of a step on, so that those of its fragments are
  // constants.
  __device__ SeenRange seen_from(const SeenRange& seen, int32_t base) const {
    const int32_t first = base + 2 * pair_;
    return {.begin = seen.begin - first, .end = seen.end - first, .sinks = seen.sinks - first};
  }

  // Scales, in powers of two for exp2f, and drops what is not seen.
  __device__ void mask(const Places& places, int32_t base, float (&scores)[kStep / 8][4]) const {
    const float scale = args_.scale * kLog2E;
    bool all = true;
#pragma unroll
    for (int i = 0; i < kStep / kWarpThreads; ++i) all = all && places.seen_by_all[i] == ~0U;
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] *= scale;
    }
    if (all) return;
    const SeenRange seen[2] = {seen_from(seen_[0], base), seen_from(seen_[1], base)};
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
      const uint32_t present = places.present[n / 4] >> 2 * pair_;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = n * 8 + e % 2;
        const bool sees = (present >> at % 32 & 1) != 0 && Mask::sees(seen[e / 2], at);
        if (!sees) scores[n][e] = kNothing;
      }
    }
  }

  // Of the four lanes that share a row.
  template <class Combine>
  __device__ static float row_combined(float value, const Combine& combine) {
    value = combine(value, __shfl_xor_sync(~0U, value, 1));
    return combine(value, __shfl_xor_sync(~0U, value, 2));
  }

  // Scores become weights relative to the new maximum; what was summed so far shrinks accordingly.
  __device__ void weigh(float (&scores)[kStep / 8][4], uint4 (&weights)[kStep / 16]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = tops_[half];
#pragma unroll
      for (int n = 0; n < kStep / 8; ++n) {
        top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      top = row_combined(top, [](float left, float right) { return fmaxf(left, right); });
      // Nothing seen so far and in this step: all weights are zero, as the sums are.
      const float from = top == kNothing ? 0.0F : top;
      const float shrink = exp2f(tops_[half] - from);
      float norm = 0.0F;
#pragma unroll
      for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[n][e] = exp2f(scores[n][e] - from);
          norm += scores[n][e];
        }
      }
      norms_[half] = norms_[half] * shrink + norm;
      tops_[half] = top;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        sums_[n][2 * half] *= shrink;
        sums_[n][2 * half + 1] *= shrink;
      }
    }
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
      const float(&low)[4] = scores[2 * k];
      const float(&high)[4] = scores[2 * k + 1];
      weights[k] = {pack<Value>(low[0], low[1]), pack<Value>(low[2], low[3]),
                    pack<Value>(high[0], high[1]), pack<Value>(high[2], high[3])};
    }
  }

  // Of positions 16 * k and on, the part's columns 16 * n and on.
  __device__ uint4 load_values(const Stage& stage, int k, int n) const {
    return ldmatrix_transposed(
        chunk_address(stage.values, lane_ % 16, part_ * (kColumns / 8) + 2 * n + lane_ / 16) +
        k * kRowsBytes);
  }

  __device__ void add_values(const Stage& stage, const uint4 (&weights)[kStep / 16]) {
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kColumns / 16; ++n) {
        const uint4 values = load_values(stage, k, n);
        mma<Value>(sums_[2 * n], weights[k], values.x, values.y);
        mma<Value>(sums_[2 * n + 1], weights[k], values.z, values.w);
      }
    }
  }

  // Is there a position that one row sees and another does not?
  __device__ static bool some_see_alone(const Places& places) {
    bool some = false;
#pragma unroll
    for (int i = 0; i < kStep / kWarpThreads; ++i) {
      some = some || places.present[i] != places.seen_by_all[i];
    }
    return some;
  }

  // Infinite values and NaN: what zero times is not zero. Only looked for where asked, by a loop
  // that ends at once otherwise: of a branch compilers make two copies of what follows.
  __device__ bool has_infinite(const Stage& stage, bool is_asked) const {
    constexpr uint32_t kExponent = Value::kExponent;
    const auto is_infinite = [](uint32_t pair) {
      return (pair & kExponent) == kExponent || (pair >> 16 & kExponent) == kExponent;
    };
    const auto* const chunks = reinterpret_cast<const uint4*>(stage.values);
    bool found = false;
    for (int i = lane_; i < (is_asked ? kStep * kChunks : 0); i += kWarpThreads) {
      const uint4 chunk = chunks[i];
      found = found || is_infinite(chunk.x) || is_infinite(chunk.y) || is_infinite(chunk.z) ||
              is_infinite(chunk.w);
    }
    return __any_sync(~0U, found) != 0;
  }

  // What one of the warp's rows sees.
  __device__ SeenRange seen_by(int row) const {
    const int lane = row % (kWarpQueries / 2) * 4;
    const auto of_lane = [&](int32_t low, int32_t high) {
      return __shfl_sync(~0U, row < kWarpQueries / 2 ? low : high, lane);
    };
    return {.begin = of_lane(seen_[0].begin, seen_[1].begin),
            .end = of_lane(seen_[0].end, seen_[1].end),
            .sinks = of_lane(seen_[0].sinks, seen_[1].sinks)};
  }

  // As add_values, to the bit, for each row by itself, with zeros for values that it does not see:
  // a row must not meet what only a neighbour sees where that is infinite.
  __device__ void add_values_by_row(const Stage& stage, int32_t base,
                                    const uint4 (&weights)[kStep / 16]) {
#pragma unroll 1
    for (int row = 0; row < kWarpQueries; ++row) {
      const SeenRange seen = seen_from(seen_by(row), base);
      uint32_t seen_pairs[kStep / 8];
#pragma unroll
      for (int i = 0; i < kStep / 8; ++i) {
        seen_pairs[i] = (Mask::sees(seen, i * 8) ? 0xFFFFU : 0U) |
                        (Mask::sees(seen, i * 8 + 1) ? 0xFFFF0000U : 0U);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 16; ++n) {
        float low[4] = {sums_[2 * n][0], sums_[2 * n][1], sums_[2 * n][2], sums_[2 * n][3]};
        float high[4] = {sums_[2 * n + 1][0], sums_[2 * n + 1][1], sums_[2 * n + 1][2],
                         sums_[2 * n + 1][3]};
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) {
          const uint4 values = load_values(stage, k, n);
          mma<Value>(low, weights[k], values.x & seen_pairs[2 * k],
                     values.y & seen_pairs[2 * k + 1]);
          mma<Value>(high, weights[k], values.z & seen_pairs[2 * k],
                     values.w & seen_pairs[2 * k + 1]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (group_ + e / 2 * 8 != row) continue;
          sums_[2 * n][e] = low[e];
          sums_[2 * n + 1][e] = high[e];
        }
      }
    }
  }

  __device__ void write() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float norm =
          row_combined(norms_[half], [](float left, float right) { return left + right; });
      const float top = tops_[half] / kLog2E;
      const int32_t query = query_of(half);
      if (!queries_.contains(query)) continue;
      if (item_.partial >= 0) {
        const int64_t share = queries_.share(item_.partial, query);
        auto* const to = reinterpret_cast<float2*>(args_.partial_sums + share * kHeadDim);
        write_sums(half, [&](int column, float low, float high) { to[column / 2] = {low, high}; });
        if (part_ == 0 && pair_ < 2)
          args_.partial_norms[2 * share + pair_] = pair_ == 0 ? top : norm;
        continue;
      }
      const QueryTotal total(args_.seen[queries_.row(query)], top, norm);
      const int64_t head_row = queries_.head_row(args_, query);
      auto* const to = reinterpret_cast<uint32_t*>(args_.out) + head_row * (kHeadDim / 2);
      write_sums(half, [&](int column, float low, float high) {
        to[column / 2] = narrowed<Value>(total.element(low)).bits |
                         uint32_t{narrowed<Value>(total.element(high)).bits} << 16;
      });
      if (part_ == 0 && pair_ == 0 && args_.log_sum_exp != nullptr) {
        args_.log_sum_exp[head_row] = total.log_sum_exp();
      }
    }
  }
  // Two columns at a time.
  template <class WritePair>
  __device__ void write_sums(int half, const WritePair& write_pair) const {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      write_pair(part_ * kColumns + n * 8 + 2 * pair_, sums_[n][2 * half], sums_[n][2 * half + 1]);
    }
  }

  static constexpr float kLog2E = 1.44269504F;

  const DeviceAttention& args_;
  const AttentionItem& item_;
  Shared& shared_;
  const BlockQueries queries_;
  const int first_query_;  // of the warp
  const int part_;
  const int lane_;
  // Of the lane in fragments (see mma).
  const int group_;
  const int pair_;
  SeenRange seen_[2];  // of the lane's two rows
  uint4 q_[kHeadDim / 16];
  float tops_[2] = {kNothing, kNothing};  // of scores in powers of two
  float norms_[2] = {};                   // the lane's part
  float sums_[kColumns / 8][4] = {};
};

// Grid: items by (KV heads and chunks). Compilers are told that a multiprocessor need not hold more
// than 256 threads: they would spill registers to make room for more.
template <class Value, int kHeadDim, class Mask>
__global__ void __launch_bounds__(TensorShape<kHeadDim>::kThreads,
                                  256 / TensorShape<kHeadDim>::kThreads)
    tensor_attention_kernel(const DeviceAttention args) {
  using Shared = TensorShared<kHeadDim>;
  TensorAttention<Value, kHeadDim, Mask>(args, *reinterpret_cast<Shared*>(dynamic_shared())).run();
}

template <class Value>
AttentionLaunch tensor_attention(int32_t head_dim, bool has_window) {
  return with_head_dim(head_dim, [=](auto size) -> AttentionLaunch {
    return {.kernel = has_window ? tensor_attention_kernel<Value, size, WindowMask>
                                 : tensor_attention_kernel<Value, size, CausalMask>,
            .threads = TensorShape<size>::kThreads,
            .shared_bytes = sizeof(TensorShared<size>)};
  });
}

}  // namespace lckv
