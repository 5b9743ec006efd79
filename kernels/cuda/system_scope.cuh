// Words that ranks of several devices, and the host, read and write at the same time; from the PTX
// ISA's "Memory Consistency Model".
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lckv {

// What its writer had written, and had seen written, before it stored what is read here is to be
// seen by the caller from now on.
__device__ __forceinline__ uint64_t load_acquire_system(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(__cvta_generic_to_global(at))
               : "memory");
  return value;
}

__device__ __forceinline__ void store_release_system(uint64_t* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(at)), "l"(value)
               : "memory");
}

}  // namespace lckv
