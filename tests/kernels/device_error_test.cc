// An error of the CUDA runtime, which the stand-in does not make by itself, ends the process.
#include <gtest/gtest.h>

#include "kernels/cuda/launch.h"

namespace lckv {
namespace {

TEST(DeviceErrorDeathTest, EndsTheProcessWithOneLine) {
  check_cuda(cudaSuccess, "attention");
  EXPECT_EXIT(check_cuda(cudaErrorMemoryAllocation, "attention"), testing::ExitedWithCode(1),
              "^CUDA error in attention: emulated\n$");
}

}  // namespace
}  // namespace lckv
