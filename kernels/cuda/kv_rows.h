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
