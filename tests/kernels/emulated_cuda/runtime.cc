// The stand-in's devices: their memory, what ranks map of each other's, and copies.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "tests/kernels/emulated_cuda/cuda_runtime.h"
#include "tests/kernels/emulated_cuda/device_memory.h"

namespace {

constexpr size_t kFilledBytes = size_t{1} << 20;
constexpr std::chrono::microseconds kLook(200);

constinit thread_local int current_device = 0;
std::atomic<emulated_cuda::PeerMemory> peer_memory = emulated_cuda::PeerMemory::kMapped;

// What kernels of ranks tell each other: who waits for it sleeps until there is more.
struct Stores {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t count = 0;
};
Stores& stores() {
  static Stores& stores = *new Stores();
  return stores;
}

}  // namespace

namespace emulated_cuda {

void map_peers(PeerMemory what) { peer_memory = what; }

void hold_up() {
  static thread_local uint64_t seen = 0;
  static thread_local unsigned num_news = 0;
  std::unique_lock<std::mutex> lock(stores().mutex);
  if (stores().count == seen) stores().changed.wait_for(lock, kLook);
  const bool is_news = stores().count != seen;
  seen = stores().count;
  lock.unlock();
  if (is_news && ++num_news % 4 == 0) std::this_thread::sleep_for(kLook);
}

void has_stored() {
  static thread_local unsigned num_stores = 0;
  {
    const std::lock_guard<std::mutex> lock(stores().mutex);
    ++stores().count;
    stores().changed.notify_all();
  }
  if (++num_stores % 8 == 0) std::this_thread::sleep_for(kLook);
}

void use_device(const std::function<void()>& body) {
  const Access access;
  body();
}

}  // namespace emulated_cuda

cudaError_t cudaSetDevice(int device) {
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  properties->uuid.bytes[15] = static_cast<char>(device);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = emulated_cuda::kDeviceBytes;
  *free = emulated_cuda::kDeviceBytes - emulated_cuda::memory().used();
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (emulated_cuda::is_recording()) return cudaErrorStreamCaptureUnsupported;
  *memory = emulated_cuda::memory().allocate(bytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  // What was never written shows as no number. Of large pieces not: pages in use make every access
  // slower.
  if (bytes <= kFilledBytes) {
    emulated_cuda::use_device([&] { std::memset(*memory, 0xFF, bytes); });
  }
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (emulated_cuda::is_recording()) return cudaErrorStreamCaptureUnsupported;
  emulated_cuda::finish_all();
  emulated_cuda::memory().free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}
// Ranks are threads: what one exports lies where it is for all.
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) {
  *handle = {};
  std::memcpy(handle->reserved, &memory, sizeof(memory));
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned) {
  using emulated_cuda::PeerMemory;
  std::memcpy(memory, handle.reserved, sizeof(*memory));
  if (peer_memory == PeerMemory::kRefused) return cudaErrorInvalidValue;
  // Not freed before the process ends.
  if (peer_memory == PeerMemory::kLost) {
    *memory = emulated_cuda::memory().allocate(emulated_cuda::memory().size(*memory));
  }
  return cudaSuccess;
}
cudaError_t cudaIpcCloseMemHandle(void*) { return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const bool is_inside = emulated_cuda::memory().holds(to) && emulated_cuda::memory().holds(from);
  if (emulated_cuda::is_recording() && !is_inside) return cudaErrorStreamCaptureUnsupported;
  emulated_cuda::call(stream, emulated_cuda::Work::kCopy, [=] {
    const emulated_cuda::Access access;
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_stride, const void* from, size_t from_stride,
                              size_t width, size_t rows, cudaMemcpyKind, cudaStream_t stream) {
  if (width > to_stride || width > from_stride) return cudaErrorInvalidValue;
  emulated_cuda::call(stream, emulated_cuda::Work::kCopy, [=] {
    const emulated_cuda::Access access;
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(static_cast<std::byte*>(to) + row * to_stride,
                  static_cast<const std::byte*>(from) + row * from_stride, width);
    }
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  emulated_cuda::call(stream, emulated_cuda::Work::kCopy, [=] {
    const emulated_cuda::Access access;
    std::memset(memory, value, bytes);
  });
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  attributes->type =
      emulated_cuda::memory().holds(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
