// StepResults: what one step leaves on the device for the host. Places are taken while the step is
// launched; what was sent is there once the device has come so far.
//
// Owner: ModelRunner. Thread: the engine's only. Takes its memory when it is made.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "kernels/check.h"
#include "kernels/ops.h"

namespace lckv {

// Some results of one kind.
template <class Value>
struct ResultSpan {
  Value* device = nullptr;
  std::span<const Value> host;  // to be read once they are there

  ResultSpan subspan(size_t begin, size_t count) const {
    return {.device = device + begin, .host = host.subspan(begin, count)};
  }
};

class StepResults {
 public:
  StepResults(size_t bytes, Ops& ops) : bytes_(bytes), buffer_(ops.allocate_results(bytes)) {}

  template <class Value>
  static constexpr size_t bytes_of(size_t count) {
    return (count * sizeof(Value) + kAlignment - 1) / kAlignment * kAlignment;
  }
  size_t room() const { return bytes_ - taken_; }
  template <class Value>
  ResultSpan<Value> take(size_t count) {
    LCKV_CHECK(bytes_of<Value>(count) <= room());
    const size_t at = taken_;
    taken_ += bytes_of<Value>(count);
    return {.device = reinterpret_cast<Value*>(buffer_->device() + at),
            .host = {reinterpret_cast<const Value*>(buffer_->host() + at), count}};
  }

  // All that was taken.
  void send() { buffer_->send(taken_); }
  bool are_there() const { return buffer_->is_there(); }
  void wait() { buffer_->wait(); }

  // What is taken from here on may be taken again, after it was read: go_back(here()).
  size_t here() const { return taken_; }
  void go_back(size_t here) { taken_ = here; }

 private:
  static constexpr size_t kAlignment = 16;

  const size_t bytes_;
  const std::unique_ptr<ResultBuffer> buffer_;
  size_t taken_ = 0;
};

}  // namespace lckv
