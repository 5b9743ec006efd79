// In place of the header of this path below the source root, whose comments hold for it too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/number_types.cuh"
#include "tests/kernels/emulated_cuda/cuda_runtime.h"

namespace lckv {

std::byte* dynamic_shared();
using SharedAddress = uintptr_t;
SharedAddress shared_address(const void* pointer);
void cp_async16(SharedAddress to, const void* from);
void cp_async_wait();
template <class Value>
uint32_t pack(float low, float high);
uint4 ldmatrix(SharedAddress row);
uint4 ldmatrix_transposed(SharedAddress row);
template <class Value>
void mma(float (&sums)[4], const uint4& a, uint32_t b0, uint32_t b1);

}  // namespace lckv
