// Memory of the device, and the way of small host arrays onto it.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

#include "kernels/cuda/ring_cursor.h"
#include "kernels/ops.h"

namespace lckv {

// Whether memory begins as zeros, as the other backends' does.
enum class Cleared : uint8_t { kYes, kNo };

// Ends the process where the device has no room: sizes were checked at start.
class CudaBuffer final : public DeviceBuffer {
 public:
  CudaBuffer(size_t bytes, cudaStream_t stream, Cleared cleared = Cleared::kYes);
  ~CudaBuffer() override;
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;
  std::byte* data() override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Whether it is memory of a device that `at` points to.
bool is_on_device(const void* at);

// Makes `buffer` at least so large, not keeping what it holds. Waits for the stream where what it
// was may still be in use.
void grow(std::unique_ptr<CudaBuffer>& buffer, size_t bytes, cudaStream_t stream);

// UploadRing: host arrays that a kernel needs are copied into page-locked memory at once, so that
// the caller may reuse them, and from there to the device in the stream's order. Waits for the
// device only where a whole ring is under way.
//
// Owner: the CUDA backend. Thread: its caller's.
class UploadRing {
 public:
  explicit UploadRing(cudaStream_t stream);
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  // Most bytes of one array.
  size_t max_bytes() const { return cursor_.segment_bytes(); }
  // Where `bytes` for the device are to be written; `send` them before anything else is taken.
  std::byte* take(size_t bytes);
  // The device's copy of what was taken last. Kernels started on the stream before two more whole
  // segments are taken may read it.
  const std::byte* send();

  template <class Value>
  const Value* upload(std::span<const Value> values) {
    std::byte* const to = take(values.size_bytes());
    if (!values.empty()) std::memcpy(to, values.data(), values.size_bytes());
    return reinterpret_cast<const Value*>(send());
  }

 private:
  static constexpr size_t kSegments = 4;
  static constexpr size_t kSegmentBytes = size_t{8} << 20;

  const cudaStream_t stream_;
  RingCursor cursor_{kSegments, kSegmentBytes};
  std::byte* host_ = nullptr;
  std::byte* device_ = nullptr;
  std::array<cudaEvent_t, kSegments> left_ = {};  // recorded when a segment's last piece was sent
  RingPiece piece_;
  size_t bytes_ = 0;
};

}  // namespace lckv
