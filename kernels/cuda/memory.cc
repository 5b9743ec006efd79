#include "kernels/cuda/memory.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"

namespace lckv {

CudaBuffer::CudaBuffer(size_t bytes, cudaStream_t stream, Cleared cleared) : bytes_(bytes) {
  void* memory = nullptr;
  check_cuda(cudaMalloc(&memory, std::max<size_t>(bytes, 1)), "allocating device memory");
  data_ = static_cast<std::byte*>(memory);
  if (cleared == Cleared::kNo) return;
  check_cuda(cudaMemsetAsync(data_, 0, bytes, stream), "clearing device memory");
}

CudaBuffer::~CudaBuffer() { check_cuda(cudaFree(data_), "freeing device memory"); }

PinnedMemory::PinnedMemory(size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  const cudaError_t allocated =
      cudaHostAlloc(&memory, std::max<size_t>(bytes, 1), cudaHostAllocDefault);
  if (allocated == cudaErrorMemoryAllocation) throw std::bad_alloc();
  check_cuda(allocated, "allocating page-locked memory");
  data_ = static_cast<std::byte*>(memory);
}

PinnedMemory::~PinnedMemory() { check_cuda(cudaFreeHost(data_), "freeing page-locked memory"); }

CudaResults::CudaResults(size_t bytes, cudaStream_t stream)
    : stream_(stream), device_(bytes, stream), host_(bytes) {
  check_cuda(cudaEventCreateWithFlags(&sent_, cudaEventDisableTiming), "creating an event");
}

CudaResults::~CudaResults() {
  wait();
  check_cuda(cudaEventDestroy(sent_), "freeing an event");
}

void CudaResults::send(size_t bytes) {
  LCKV_CHECK(bytes <= device_.bytes());
  check_cuda(cudaMemcpyAsync(host_.data(), device_.data(), bytes, cudaMemcpyDefault, stream_),
             "sending results");
  check_cuda(cudaEventRecord(sent_, stream_), "sending results");
}

bool CudaResults::is_there() const {
  const cudaError_t state = cudaEventQuery(sent_);
  if (state != cudaErrorNotReady) check_cuda(state, "a step");
  return state == cudaSuccess;
}

void CudaResults::wait() { check_cuda(cudaEventSynchronize(sent_), "a step"); }

bool is_on_device(const void* at) {
  cudaPointerAttributes attributes = {};
  check_cuda(cudaPointerGetAttributes(&attributes, at), "looking where memory lies");
  return attributes.type == cudaMemoryTypeDevice;
}

void grow(std::unique_ptr<CudaBuffer>& buffer, size_t bytes, cudaStream_t stream) {
  if (buffer != nullptr && buffer->bytes() >= bytes) return;
  if (buffer != nullptr) check_cuda(cudaStreamSynchronize(stream), "freeing device memory");
  buffer.reset();
  buffer = std::make_unique<CudaBuffer>(bytes, stream, Cleared::kNo);
}

UploadRing::UploadRing(cudaStream_t stream) : stream_(stream) {
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, kSegments * kSegmentBytes, cudaHostAllocDefault),
             "allocating page-locked memory");
  host_ = static_cast<std::byte*>(memory);
  check_cuda(cudaMalloc(&memory, kSegments * kSegmentBytes), "allocating device memory");
  device_ = static_cast<std::byte*>(memory);
  for (cudaEvent_t& event : left_) {
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
}

UploadRing::~UploadRing() {
  check_cuda(cudaStreamSynchronize(stream_), "waiting for uploads");
  for (const cudaEvent_t event : left_) check_cuda(cudaEventDestroy(event), "freeing an event");
  check_cuda(cudaFree(device_), "freeing device memory");
  check_cuda(cudaFreeHost(host_), "freeing page-locked memory");
}

std::byte* UploadRing::take(size_t bytes) {
  LCKV_CHECK(bytes <= max_bytes());
  const size_t left = cursor_.segment();
  piece_ = cursor_.take(bytes);
  bytes_ = bytes;
  if (piece_.enters_segment) {
    ++num_entered_;
    // The first piece of all leaves a segment that holds nothing, which does no harm; an event that
    // was never recorded is over.
    check_cuda(cudaEventRecord(left_[left], stream_), "recording an upload");
    check_cuda(cudaEventSynchronize(left_[piece_.segment]), "waiting for an upload");
  }
  return host_ + piece_.offset;
}

void UploadRing::begin_batch(std::span<const UploadedArray> placed) {
  LCKV_CHECK(!in_batch_);
  in_batch_ = true;
  is_placed_ = !placed.empty();
  for (const UploadedArray& array : placed) sent_.push_back({.array = array});
}

void UploadRing::end_batch() {
  in_batch_ = false;
  is_placed_ = false;
  sent_.clear();
}

std::vector<UploadedArray> UploadRing::arrays() const {
  std::vector<UploadedArray> all;
  for (const auto& [array, when] : sent_) {
    const auto found = std::find_if(all.begin(), all.end(), [&](const UploadedArray& other) {
      return other.values == array.values && other.bytes == array.bytes;
    });
    if (found == all.end()) all.push_back(array);
  }
  return all;
}

const std::byte* UploadRing::upload(const void* values, size_t bytes) {
  for (const auto& [array, when] : sent_) {
    if (array.values != values || array.bytes != bytes) continue;
    if (is_placed_ || has_since(when)) return array.device;
  }
  LCKV_CHECK(!is_placed_);
  std::byte* const to = take(bytes);
  if (bytes > 0) std::memcpy(to, values, bytes);
  const std::byte* const device = send();
  if (in_batch_) sent_.push_back({{values, bytes, device}, now()});
  return device;
}

const std::byte* UploadRing::send() {
  send_to(device_ + piece_.offset);
  return device_ + piece_.offset;
}

void UploadRing::send_to(std::byte* device) {
  check_cuda(cudaMemcpyAsync(device, host_ + piece_.offset, bytes_, cudaMemcpyDefault, stream_),
             "an upload");
}

}  // namespace lckv
