// The way of host arrays to the device, over emulated_cuda.
#include <gtest/gtest.h>

#include <cstring>
#include <span>
#include <vector>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/stream.h"

namespace lckv {
namespace {

class UploadRingTest : public testing::Test {
 protected:
  const int32_t* upload() { return ring_.upload(std::span<const int32_t>(values_)); }
  std::vector<int32_t> there(const int32_t* device) {
    std::vector<int32_t> found(values_.size());
    check_cuda(cudaMemcpyAsync(found.data(), device, found.size() * sizeof(int32_t),
                               cudaMemcpyDefault, stream_),
               "reading back");
    check_cuda(cudaStreamSynchronize(stream_), "reading back");
    return found;
  }
  void send_other(int num_segments) {
    for (int i = 0; i < num_segments; ++i) {
      std::memset(ring_.take(ring_.max_bytes()), 0xFF, ring_.max_bytes());
      ring_.send();
    }
  }

  std::vector<int32_t> values_ = {1, 2, 3};
  const Stream stream_;
  UploadRing ring_{stream_};
};

TEST_F(UploadRingTest, InABatchAnArrayGoesOverOnce) {
  const int32_t* const alone = upload();
  EXPECT_NE(upload(), alone);
  ring_.begin_batch();
  const int32_t* const first = upload();
  EXPECT_EQ(upload(), first);
  EXPECT_NE(ring_.upload(std::span<const int32_t>(values_).first(2)), first);
  ring_.end_batch();
  values_[1] = 7;
  ring_.begin_batch();
  EXPECT_EQ(there(upload()), values_);
  ring_.end_batch();
}

TEST_F(UploadRingTest, InABatchAnArrayGoesOverAgainBeforeItsPlaceIsTaken) {
  ring_.begin_batch();
  for (int num_segments = 0; num_segments < 10; ++num_segments) {
    ASSERT_EQ(there(upload()), values_) << num_segments;
    send_other(num_segments);
    ASSERT_EQ(there(upload()), values_) << num_segments;
  }
  ring_.end_batch();
}

}  // namespace
}  // namespace lckv
