// What our kernels and their callers use of CUDA, on the host: the same sources compiled with this
// header first run without a device, under sanitizers too. The threads of a block are contexts that
// one thread of the host runs in turn, each until it waits for others; every second launch begins
// with the last one, so that a missing barrier shows in one of the two orders. Device memory is
// closed to the host but while a kernel or a copy runs. What this cannot show is what two threads
// do at the same moment, how much of a resource a kernel takes, and time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct dim3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Of the thread that is running.
extern dim3 threadIdx;
extern dim3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

void __syncthreads();
void __syncwarp(unsigned mask = ~0U);

namespace emulated_cuda {

// Runs `body` once per thread of every block.
void run_grid(dim3 grid, dim3 block, const std::function<void()>& body);
// Each lane of the running thread's warp gives `bytes`, at most 8, and gets those of lane `source`.
void exchange(const void* given, int source, void* got, size_t bytes);
int lane();

}  // namespace emulated_cuda

template <class Value>
Value __shfl_sync(unsigned, Value value, int source) {
  Value got;
  emulated_cuda::exchange(&value, source % 32, &got, sizeof(value));
  return got;
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int distance) {
  return __shfl_sync(mask, value, emulated_cuda::lane() ^ distance);
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned distance) {
  const int source = emulated_cuda::lane() - static_cast<int>(distance);
  return __shfl_sync(mask, value, source < 0 ? emulated_cuda::lane() : source);
}
inline int __any_sync(unsigned mask, int predicate) {
  int any = 0;
  for (int lane = 0; lane < 32; ++lane) any |= __shfl_sync(mask, predicate, lane);
  return any != 0 ? 1 : 0;
}

template <class Value, class Added>
Value atomicAdd(Value* target, Added added) {
  const Value before = *target;
  *target += static_cast<Value>(added);
  return before;
}

using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum cudaMemcpyKind { cudaMemcpyDefault };
inline constexpr unsigned cudaEventDisableTiming = 0;
inline constexpr unsigned cudaHostAllocDefault = 0;
inline constexpr unsigned cudaStreamNonBlocking = 0;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  emulated_cuda::run_grid(config->gridDim, config->blockDim,
                          [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
