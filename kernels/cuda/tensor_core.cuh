// What tensor cores are fed and driven with, as the PTX ISA has it for compute capability 8.0 and
// later. For the host, tests/kernels/emulated_cuda has a header of the same path. All functions but
// cp_async16, cp_async_wait and pack are the whole warp's: every lane calls them at once.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/number_types.cuh"

namespace lckv {

// The block's shared memory that its launch asked for. Aligned to 16 bytes.
__device__ inline std::byte* dynamic_shared() {
  extern __shared__ uint4 bytes[];
  return reinterpret_cast<std::byte*>(bytes);
}

// Where something lies in shared memory, in bytes: half as wide as a pointer.
using SharedAddress = uint32_t;
__device__ inline SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// Begins to copy 16 aligned bytes from global to shared memory, past the registers.
__device__ inline void cp_async16(SharedAddress to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}

// Waits for all copies that this thread has begun. Other threads' need a barrier behind it.
__device__ inline void cp_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Two floats, rounded to the nearest of the format (ties to even), `low` in the lower half.
template <class Value>
__device__ inline uint32_t pack(float low, float high) {
  uint32_t packed;
  if constexpr (std::is_same_v<Value, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

// Four 8x8 matrices of 16-bit elements in shared memory. Lane i gives the address of row i % 8 of
// matrix i / 8, and gets of each matrix elements 2 * (i % 4) and the next of row i / 4.
__device__ inline uint4 ldmatrix(SharedAddress row) {
  uint4 out;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(row)
               : "memory");
  return out;
}

// The same of their transposes.
__device__ inline uint4 ldmatrix_transposed(SharedAddress row) {
  uint4 out;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "r"(row)
               : "memory");
  return out;
}

// sums += A * B: A [16, 16], B [16, 8] of Value, sums [16, 8]. With g = lane / 4, t = lane % 4:
//   A  a.x: row g, columns 2t and 2t + 1; a.y: row g + 8; a.z: row g, columns 2t + 8 and 2t + 9;
//      a.w: row g + 8, the same columns
//   B  b0: rows 2t and 2t + 1, column g; b1: rows 2t + 8 and 2t + 9
//   sums[0], [1]: row g, columns 2t and 2t + 1; sums[2], [3]: row g + 8
template <class Value>
__device__ inline void mma(float (&sums)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<Value, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
}

}  // namespace lckv
