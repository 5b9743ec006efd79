// Moves of keys and values between float rows, staged rows and slots; see Ops for the meaning. All
// pointers are device pointers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/ops.h"

namespace lckv {

// Float rows of keys and values.
struct FloatKv {
  const float* k = nullptr;  // [rows, row_stride]
  const float* v = nullptr;
  int64_t row_stride = 0;
};

// Staged rows by ids [count].
struct StagedIds {
  const int32_t* ids = nullptr;
  int64_t count = 0;
};

// Slots by block and place in it, [count] each.
struct SlotIds {
  const int32_t* blocks = nullptr;
  const int32_t* slots = nullptr;
  int64_t count = 0;
};

// See Ops::rope_kv. Keys and values go to slots, or to staged rows where there are no blocks.
struct RotatedKv {
  float* q = nullptr;  // [rows, num_heads * head_dim]
  int32_t num_heads = 0;
  const float* kv = nullptr;  // [rows, 2 * kv_heads * head_dim]
  const int32_t* positions = nullptr;
  int64_t rows = 0;
  const float* cos = nullptr;  // [max_positions, head_dim / 2]
  const float* sin = nullptr;
  KvLayout layout;
  SlotIds slots;
  const int32_t* staged_rows = nullptr;
  KvRows staged;
};
void rotate_kv_rows(const RotatedKv& args, cudaStream_t stream);

void stage_kv_rows(const FloatKv& from, const KvLayout& layout, const StagedIds& ids,
                   const KvRows& staged, cudaStream_t stream);
void zero_kv_rows(const KvLayout& layout, const StagedIds& ids, const KvRows& staged,
                  cudaStream_t stream);
void copy_kv_rows(const KvLayout& layout, const StagedIds& ids, const KvRows& from,
                  const KvRows& to, cudaStream_t stream);
// out [count], on the device.
void compare_kv_rows(const KvLayout& layout, const StagedIds& ids, const KvRows& fresh,
                     const KvRows& read, KvDistance* out, cudaStream_t stream);
void append_kv_rows(const FloatKv& from, const KvLayout& layout, const SlotIds& slots,
                    cudaStream_t stream);
void commit_kv_rows(const KvRows& staged, const StagedIds& ids, const KvLayout& layout,
                    const SlotIds& slots, cudaStream_t stream);

}  // namespace lckv
