#include <bit>
#include <type_traits>

#include "kernels/cuda/block_sums.cuh"
#include "kernels/cuda/kv_index.h"
#include "kernels/cuda/kv_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/number_types.cuh"

namespace lckv {
namespace {

constexpr int kThreads = 128;

LaunchShape by_row(int64_t count) {
  return {.grid = dim3(static_cast<unsigned>(count)), .threads = kThreads};
}

template <class Value>
__device__ Value* values_of(std::byte* bytes) {
  return reinterpret_cast<Value*>(bytes);
}

struct Rotated {
  float low;
  float high;
};
__device__ Rotated rotated(float low, float high, float cos, float sin) {
  return {low * cos - high * sin, high * cos + low * sin};
}

// Where a row's keys and values go, value j of them.
template <class Value>
class KvPlace {
 public:
  __device__ KvPlace(const RotatedKv& args, int64_t row) : layout_(args.layout) {
    if (args.slots.blocks == nullptr) {
      id_ = args.staged_rows[row];
      k_ = values_of<Value>(args.staged.k) + id_ * kv_row_width(layout_);
      v_ = values_of<Value>(args.staged.v) + id_ * kv_row_width(layout_);
      return;
    }
    id_ = args.slots.blocks[row];
    slot_ = args.slots.slots[row];
    k_ = values_of<Value>(layout_.base + id_ * layout_.block_bytes);
    v_ = k_ + value_distance(layout_);
  }
  __device__ bool is_nowhere() const { return id_ < 0; }
  __device__ void write(int64_t j, float k, float v) {
    const int64_t at = slot_ < 0 ? j : slot_element(layout_, slot_, j);
    k_[at] = narrowed<Value>(k);
    v_[at] = narrowed<Value>(v);
  }

 private:
  const KvLayout& layout_;
  int64_t id_ = -1;
  int32_t slot_ = -1;  // of a block; staged rows have none
  Value* k_ = nullptr;
  Value* v_ = nullptr;
};

// A thread per pair of values that turn together: those of q, then those of k, each with the two of
// v at their place.
template <class Value>
__global__ void rotate_kv_kernel(const RotatedKv args) {
  const int64_t row = blockIdx.x;
  const int32_t half = args.layout.head_dim / 2;
  const int64_t pair = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const int64_t q_pairs = int64_t{args.num_heads} * half;
  if (pair >= q_pairs + int64_t{args.layout.kv_heads} * half) return;
  const int64_t i = pair % half;
  const int64_t angle = int64_t{args.positions[row]} * half + i;
  const float cos = args.cos[angle];
  const float sin = args.sin[angle];
  if (pair < q_pairs) {
    float* const low = args.q + row * 2 * q_pairs + pair / half * 2 * half + i;
    const Rotated turned = rotated(low[0], low[half], cos, sin);
    low[0] = turned.low;
    low[half] = turned.high;
    return;
  }
  KvPlace<Value> place(args, row);
  if (place.is_nowhere()) return;
  const int64_t width = kv_row_width(args.layout);
  const int64_t j = (pair - q_pairs) / half * 2 * half + i;
  const float* const k = args.kv + row * 2 * width + j;
  const Rotated turned = rotated(k[0], k[half], cos, sin);
  place.write(j, turned.low, k[width]);
  place.write(j + half, turned.high, k[width + half]);
}

template <class Value>
__global__ void stage_kernel(FloatKv from, KvLayout layout, const int32_t* ids, KvRows staged) {
  if (ids[blockIdx.x] < 0) return;
  const int64_t width = kv_row_width(layout);
  const int64_t to = ids[blockIdx.x] * width;
  const int64_t row = blockIdx.x * from.row_stride;
  for (int64_t j = threadIdx.x; j < width; j += kThreads) {
    values_of<Value>(staged.k)[to + j] = narrowed<Value>(from.k[row + j]);
    values_of<Value>(staged.v)[to + j] = narrowed<Value>(from.v[row + j]);
  }
}

__global__ void zero_kernel(int64_t row_bytes, const int32_t* ids, KvRows staged) {
  const int64_t at = ids[blockIdx.x] * row_bytes;
  for (int64_t j = threadIdx.x; j < row_bytes; j += kThreads) {
    staged.k[at + j] = std::byte{0};
    staged.v[at + j] = std::byte{0};
  }
}

__global__ void copy_kernel(int64_t row_bytes, const int32_t* ids, KvRows from, KvRows to) {
  const int64_t at = ids[blockIdx.x] * row_bytes;
  for (int64_t j = threadIdx.x; j < row_bytes; j += kThreads) {
    to.k[at + j] = from.k[at + j];
    to.v[at + j] = from.v[at + j];
  }
}

template <class Value>
__global__ void compare_kernel(KvLayout layout, const int32_t* ids, KvRows fresh, KvRows read,
                               KvDistance* out) {
  const int64_t width = kv_row_width(layout);
  const int64_t at = ids[blockIdx.x] * width;
  float difference_squared = 0.0F;
  float norm_squared = 0.0F;
  float num_different = 0.0F;
  for (int64_t j = threadIdx.x; j < 2 * width; j += kThreads) {
    const int64_t index = at + (j < width ? j : j - width);
    const Value now = values_of<Value>(j < width ? fresh.k : fresh.v)[index];
    const Value before = values_of<Value>(j < width ? read.k : read.v)[index];
    const float difference = widened(now) - widened(before);
    difference_squared += difference * difference;
    norm_squared += widened(now) * widened(now);
    // By bits: zeros of two signs differ, and a NaN may equal another.
    using Bits = std::conditional_t<sizeof(Value) == 4, uint32_t, uint16_t>;
    num_different += std::bit_cast<Bits>(now) != std::bit_cast<Bits>(before) ? 1 : 0;
  }
  const float difference = block_sum<kThreads>(difference_squared);
  const float norm = block_sum<kThreads>(norm_squared);
  const float differs = block_sum<kThreads>(num_different);
  if (threadIdx.x == 0) out[blockIdx.x] = {difference, norm, differs};
}

template <class Value>
__global__ void append_kernel(FloatKv from, KvLayout layout, SlotIds slots) {
  if (slots.blocks[blockIdx.x] < 0) return;
  const int64_t row = blockIdx.x * from.row_stride;
  Value* const block =
      values_of<Value>(layout.base + slots.blocks[blockIdx.x] * layout.block_bytes);
  const int32_t slot = slots.slots[blockIdx.x];
  for (int64_t j = threadIdx.x; j < kv_row_width(layout); j += kThreads) {
    const int64_t to = slot_element(layout, slot, j);
    block[to] = narrowed<Value>(from.k[row + j]);
    block[value_distance(layout) + to] = narrowed<Value>(from.v[row + j]);
  }
}

template <class Value>
__global__ void commit_kernel(KvRows staged, const int32_t* ids, KvLayout layout, SlotIds slots) {
  const int64_t from = ids[blockIdx.x] * kv_row_width(layout);
  Value* const block =
      values_of<Value>(layout.base + slots.blocks[blockIdx.x] * layout.block_bytes);
  const int32_t slot = slots.slots[blockIdx.x];
  for (int64_t j = threadIdx.x; j < kv_row_width(layout); j += kThreads) {
    const int64_t to = slot_element(layout, slot, j);
    block[to] = values_of<Value>(staged.k)[from + j];
    block[value_distance(layout) + to] = values_of<Value>(staged.v)[from + j];
  }
}

}  // namespace

void rotate_kv_rows(const RotatedKv& args, cudaStream_t stream) {
  const int64_t pairs = (int64_t{args.num_heads} + args.layout.kv_heads) * args.layout.head_dim / 2;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.rows),
                                       static_cast<unsigned>((pairs + kThreads - 1) / kThreads)),
                          .threads = kThreads};
  with_values(args.layout.dtype, [&](auto value) {
    launch("rope_kv", stream, shape, rotate_kv_kernel<decltype(value)>, args);
  });
}

void stage_kv_rows(const FloatKv& from, const KvLayout& layout, const StagedIds& ids,
                   const KvRows& staged, cudaStream_t stream) {
  with_values(layout.dtype, [&](auto value) {
    launch("stage_kv", stream, by_row(ids.count), stage_kernel<decltype(value)>, from, layout,
           ids.ids, staged);
  });
}

void zero_kv_rows(const KvLayout& layout, const StagedIds& ids, const KvRows& staged,
                  cudaStream_t stream) {
  launch("zero_kv", stream, by_row(ids.count), zero_kernel, kv_row_bytes(layout), ids.ids, staged);
}

void copy_kv_rows(const KvLayout& layout, const StagedIds& ids, const KvRows& from,
                  const KvRows& to, cudaStream_t stream) {
  launch("copy_kv", stream, by_row(ids.count), copy_kernel, kv_row_bytes(layout), ids.ids, from,
         to);
}

void compare_kv_rows(const KvLayout& layout, const StagedIds& ids, const KvRows& fresh,
                     const KvRows& read, KvDistance* out, cudaStream_t stream) {
  with_values(layout.dtype, [&](auto value) {
    launch("compare_kv", stream, by_row(ids.count), compare_kernel<decltype(value)>, layout,
           ids.ids, fresh, read, out);
  });
}

void append_kv_rows(const FloatKv& from, const KvLayout& layout, const SlotIds& slots,
                    cudaStream_t stream) {
  with_values(layout.dtype, [&](auto value) {
    launch("append_kv", stream, by_row(slots.count), append_kernel<decltype(value)>, from, layout,
           slots);
  });
}

void commit_kv_rows(const KvRows& staged, const StagedIds& ids, const KvLayout& layout,
                    const SlotIds& slots, cudaStream_t stream) {
  with_values(layout.dtype, [&](auto value) {
    launch("commit_kv", stream, by_row(ids.count), commit_kernel<decltype(value)>, staged, ids.ids,
           layout, slots);
  });
}

}  // namespace lckv
