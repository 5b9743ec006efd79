#include "worker/engine/numerics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/reference_ops.h"

namespace lckv {
namespace {

// Streams move only between replicas whose sums are cut alike.
TEST(Numerics, TellTensorParallelSizesApart) {
  const auto ops = open_reference_ops(DType::kFloat32);
  const std::string one = describe_numerics(*ops, {.reproducible = true});
  const std::string two =
      describe_numerics(*ops, {.reproducible = true, .tensor_parallel_size = 2});
  EXPECT_EQ(two, one + ";tensor-parallel=2");
  EXPECT_NE(two, describe_numerics(*ops, {.reproducible = true, .tensor_parallel_size = 4}));
}

}  // namespace
}  // namespace lckv
