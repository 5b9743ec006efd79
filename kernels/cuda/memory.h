// Memory of the device, and the way of small host arrays onto it.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

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

// Host memory that is page-locked: copies from it need no thread of the host, and kernels may write
// it. Throws std::bad_alloc where the host has no room.
class PinnedMemory {
 public:
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

class CudaHostBuffer final : public HostBuffer {
 public:
  explicit CudaHostBuffer(size_t bytes) : memory_(bytes) {}
  std::byte* data() override { return memory_.data(); }

 private:
  const PinnedMemory memory_;
};

// ResultBuffer of the device: page-locked memory, which the stream copies to.
class CudaResults final : public ResultBuffer {
 public:
  CudaResults(size_t bytes, cudaStream_t stream);
  // Waits for what is on its way.
  ~CudaResults() override;
  CudaResults(const CudaResults&) = delete;
  CudaResults& operator=(const CudaResults&) = delete;
  std::byte* device() override { return device_.data(); }
  const std::byte* host() const override { return host_.data(); }
  void send(size_t bytes) override;
  bool is_there() const override;
  void wait() override;

 private:
  const cudaStream_t stream_;
  CudaBuffer device_;
  const PinnedMemory host_;
  cudaEvent_t sent_ = nullptr;  // reached once all that was sent is there
};

// Whether it is memory of a device that `at` points to.
bool is_on_device(const void* at);

// Makes `buffer` at least so large; what it holds then is open. Waits for the stream where what it
// was may still be in use.
void grow(std::unique_ptr<CudaBuffer>& buffer, size_t bytes, cudaStream_t stream);

// A host array, and where the device has it.
struct UploadedArray {
  const void* values = nullptr;
  size_t bytes = 0;
  const std::byte* device = nullptr;
};

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
  // The same to a place of the caller's.
  void send_to(std::byte* device);

  // In a batch (Ops::begin_batch) an array that the device still has is not sent again.
  template <class Value>
  const Value* upload(std::span<const Value> values) {
    return reinterpret_cast<const Value*>(upload(values.data(), values.size_bytes()));
  }
  // `placed`: all arrays that the batch will name, which somebody else brings to their places.
  void begin_batch(std::span<const UploadedArray> placed = {});
  void end_batch();
  // What the batch has named so far, each once.
  std::vector<UploadedArray> arrays() const;

  // How much has been taken, to ask later whether the device still has what was sent last and what
  // is sent from here on.
  uint64_t now() const { return num_entered_; }
  bool has_since(uint64_t then) const { return num_entered_ - then < 2; }

 private:
  struct Sent {
    UploadedArray array;
    uint64_t when = 0;
  };
  const std::byte* upload(const void* values, size_t bytes);

  static constexpr size_t kSegments = 4;
  static constexpr size_t kSegmentBytes = size_t{8} << 20;

  const cudaStream_t stream_;
  RingCursor cursor_{kSegments, kSegmentBytes};
  std::byte* host_ = nullptr;
  std::byte* device_ = nullptr;
  std::array<cudaEvent_t, kSegments> left_ = {};  // recorded when a segment's last piece was sent
  uint64_t num_entered_ = 0;                      // segments
  bool in_batch_ = false;
  bool is_placed_ = false;
  std::vector<Sent> sent_;  // in this batch
  RingPiece piece_;
  size_t bytes_ = 0;
};

}  // namespace lckv
