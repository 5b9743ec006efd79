// RingCursor: where the next piece of a ring of equal segments lies. Pure, so that it is tested
// without a device.
#pragma once

#include <cstddef>

namespace lckv {

struct RingPiece {
  size_t offset = 0;
  // The piece begins a segment: what used this one last round must be over.
  bool enters_segment = false;
  size_t segment = 0;
};

class RingCursor {
 public:
  constexpr RingCursor(size_t num_segments, size_t segment_bytes)
      : num_segments_(num_segments), segment_bytes_(segment_bytes) {}

  // A piece lies within one segment: at most segment_bytes.
  constexpr RingPiece take(size_t bytes) {
    constexpr size_t kAlignment = 256;
    // Nothing takes its place too, so that no piece lies behind its segment.
    bytes = bytes == 0 ? kAlignment : (bytes + kAlignment - 1) / kAlignment * kAlignment;
    const bool enters = used_ + bytes > segment_bytes_ || !started_;
    if (enters) {
      segment_ = started_ ? (segment_ + 1) % num_segments_ : 0;
      started_ = true;
      used_ = 0;
    }
    const RingPiece piece{
        .offset = segment_ * segment_bytes_ + used_, .enters_segment = enters, .segment = segment_};
    used_ += bytes;
    return piece;
  }

  constexpr size_t segment_bytes() const { return segment_bytes_; }
  constexpr size_t segment() const { return segment_; }

 private:
  size_t num_segments_;
  size_t segment_bytes_;
  size_t segment_ = 0;
  size_t used_ = 0;
  bool started_ = false;
};

}  // namespace lckv
