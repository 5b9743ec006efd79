// What our kernels and their callers use of CUDA, on the host: the same sources compiled with this
// header first run without a device, under sanitizers too. The threads of a block are contexts that
// one thread of the host runs in turn, each until it waits for others; every second launch begins
// with the last one, so that a missing barrier shows in one of the two orders. Device memory is
// closed to the host but while a kernel or a copy runs, and its addresses are not used twice. What
// this cannot show is what two threads of a device do at the same moment, how much of a resource a
// kernel takes, and time. Threads of the host may each be a rank with a device and streams of its
// own; their work is done one after the other, but for cooperative grids: these may wait for each
// other, and run at the same time. What a stream is to do is done in its order; which of two
// streams goes ahead is streams.h's.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct dim3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
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
extern constinit thread_local dim3 threadIdx;
extern constinit thread_local dim3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;

void __syncthreads();
int __syncthreads_or(int predicate);
void __syncwarp(unsigned mask = ~0U);

using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
using cudaGraph_t = struct EmulatedGraph*;
using cudaGraphExec_t = struct EmulatedGraph*;
struct cudaLaunchConfig_t;

namespace emulated_cuda {

// Runs `body` once per thread of every block.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
// The same in its stream's order. A cooperative grid is begun at once, when all that the stream was
// to do before has been done; returns before it has ended. False: the stream is of another device
// than the thread.
bool run_grid(const cudaLaunchConfig_t& config, std::function<void()> kernel);
// Asked for by cudaFuncSetAttribute.
void allow_shared(const void* kernel, size_t bytes);
size_t allowed_shared(const void* kernel);
int lane();
int any(int predicate);
// What ranks that map each other's memory get from now on: it, an error, or without one some other
// memory, where nothing arrives that a peer writes.
enum class PeerMemory : uint8_t { kMapped, kRefused, kLost };
void map_peers(PeerMemory what);
// While one lives, they do not get it.
class NoPeerMemory {
 public:
  explicit NoPeerMemory(PeerMemory what = PeerMemory::kRefused) { map_peers(what); }
  ~NoPeerMemory() { map_peers(PeerMemory::kMapped); }
};
// After a look at what other ranks write: waits a little where nothing is new, and now and then
// where something is, so that what they do too early shows. After a store, so that what they see
// too early does.
void hold_up();
void has_stored();
// While `body` runs, device memory is open.
void use_device(const std::function<void()>& body);
// What a stream is to do next. Its first kernel makes it one of those with kernels (streams.h).
enum class Work : uint8_t { kCopy, kKernel };
void call(cudaStream_t stream, Work kind, std::function<void()> work);
// Whether the stream is being recorded: then `again` is called whenever the recording is launched,
// and nothing else is to be done.
bool record(cudaStream_t stream, std::function<void()> again);
// Whether this thread records a stream.
bool is_recording();
// Recordings that were launched.
int num_graph_launches();
// Does all that streams of any thread are to do.
void finish_all();
// A stream is busy from an exchange with other ranks until these have come to it. Before, all that
// it is to do has been done; what is called on it afterwards waits for the exchange's end.
void set_busy(cudaStream_t stream, bool busy);
void finish(cudaStream_t stream);

// What a lane gives to its warp.
struct alignas(16) Given {
  std::byte bytes[32];
};
// Waits for the running thread's warp, and returns what its 32 lanes gave, `bytes` each. To be read
// before the next call.
const Given* gather(const void* given, size_t bytes);

template <class Value>
class Gathered {
 public:
  explicit Gathered(const Value& value) : given_(gather(&value, sizeof(value))) {
    static_assert(sizeof(Value) <= sizeof(Given));
  }
  Value operator[](int lane) const {
    Value value;
    std::memcpy(&value, &given_[lane], sizeof(value));
    return value;
  }

 private:
  const Given* const given_;
};

// Copies to shared memory that the running thread has begun and not waited for.
struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes;
};
std::vector<PendingCopy>& pending_copies();
// Whether copies happen as they begin or as they are waited for: launches take turns, so that who
// reads too early or overwrites too early shows in one of the two.
bool copies_at_once();
// What the running launch asked for. All bits are set when a block begins.
std::byte* launch_shared();

}  // namespace emulated_cuda

template <class Value>
Value __shfl_sync(unsigned, Value value, int source) {
  return emulated_cuda::Gathered<Value>(value)[source % 32];
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
inline unsigned __ballot_sync(unsigned, int predicate) {
  const emulated_cuda::Gathered<int> predicates(predicate);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= (predicates[lane] != 0 ? 1U : 0U) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0 ? 1 : 0;
}

template <class Value, class Added>
Value atomicAdd(Value* target, Added added) {
  const Value before = *target;
  *target += static_cast<Value>(added);
  return before;
}

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorMemoryAllocation,
  cudaErrorNotReady,
  cudaErrorInvalidResourceHandle,
  cudaErrorStreamCaptureUnsupported,
};
struct cudaFuncAttributes {};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyDefault, cudaMemcpyDeviceToDevice };
inline constexpr unsigned cudaEventDisableTiming = 0;
inline constexpr unsigned cudaHostAllocDefault = 0;
inline constexpr unsigned cudaHostAllocMapped = 2;
inline constexpr unsigned cudaStreamNonBlocking = 0;

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto* const address = reinterpret_cast<const void*>(kernel);
  if (config->dynamicSmemBytes > emulated_cuda::allowed_shared(address)) {
    return cudaErrorInvalidValue;
  }
  const bool is_run = emulated_cuda::run_grid(
      *config, [kernel, ... values = static_cast<Parameters>(arguments)] { kernel(values...); });
  return is_run ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  emulated_cuda::allow_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(value));
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*)(Parameters...)) {
  return cudaSuccess;
}

struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  cudaUUID_t uuid;  // its last byte is the device's number
};
struct cudaIpcMemHandle_t {
  char reserved[64];
};
inline constexpr unsigned cudaIpcMemLazyEnablePeerAccess = 1;

// Of the calling thread.
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags);
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory);
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_stride, const void* from, size_t from_stride,
                              size_t width, size_t rows, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
// Until the end, what waits for the stream or tells others of it, and what allocates or frees
// memory, is refused, as are copies from and to the host: they would be made again whenever the
// graph is launched. One that can be launched keeps device memory.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* launchable, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t launchable);
cudaError_t cudaGraphLaunch(cudaGraphExec_t launchable, cudaStream_t stream);

enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeDevice };
struct cudaPointerAttributes {
  cudaMemoryType type;
};
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
