#include "kernels/cuda/weight_slot.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

// Of one copy. Copies of other streams, such as a step's few kilobytes, go by the same way to the
// device and wait for the one that is on it. Not measured.
constexpr size_t kCopyBytes = size_t{8} << 20;

}  // namespace

CudaWeightSlot::CudaWeightSlot(size_t bytes, cudaStream_t stream, cudaStream_t copies)
    : stream_(stream), copies_(copies), memory_(bytes, stream, Cleared::kNo) {
  for (cudaEvent_t* const event : {&is_free_, &is_full_}) {
    check_cuda(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "creating an event");
  }
}

CudaWeightSlot::~CudaWeightSlot() {
  // Weights may go next, and with them what is copied from.
  check_cuda(cudaStreamSynchronize(copies_), "waiting for fetched weights");
  for (const cudaEvent_t event : {is_free_, is_full_}) {
    check_cuda(cudaEventDestroy(event), "freeing an event");
  }
}

void CudaWeightSlot::begin_turn() {
  check_cuda(cudaEventRecord(is_free_, stream_), "recording the last use of weights");
  check_cuda(cudaStreamWaitEvent(copies_, is_free_, 0), "waiting for the last use of weights");
  ++turn_;
  filled_ = 0;
}

size_t CudaWeightSlot::add(const PinnedMemory& piece) {
  LCKV_CHECK(filled_ + piece.bytes() <= memory_.bytes());
  const size_t at = filled_;
  for (size_t done = 0; done < piece.bytes(); done += kCopyBytes) {
    check_cuda(
        cudaMemcpyAsync(memory_.data() + at + done, piece.data() + done,
                        std::min(kCopyBytes, piece.bytes() - done), cudaMemcpyDefault, copies_),
        "fetching weights");
  }
  filled_ += piece.bytes();
  return at;
}

void CudaWeightSlot::end_turn() {
  check_cuda(cudaEventRecord(is_full_, copies_), "recording fetched weights");
  has_waited_ = false;
}

const std::byte* CudaWeightSlot::wait(uint64_t turn) {
  LCKV_CHECK(turn == turn_);
  if (!has_waited_) {
    check_cuda(cudaStreamWaitEvent(stream_, is_full_, 0), "waiting for fetched weights");
    has_waited_ = true;
  }
  return memory_.data();
}

}  // namespace lckv
