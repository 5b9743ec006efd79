// Threads, block sizes and where weights are kept change nothing.
#include "tests/equalities/equality.h"

namespace lckv {
namespace {

class Machine : public Equality {};

TEST_P(Machine, TwoThreadsAreOne) {
  LocalOptions two = options();
  two.threads = 2;
  const auto specs = workload(1);
  expect_equal(together(two, specs), together(options(), specs));
}

TEST_P(Machine, BlockSizesAreEqual) {
  const auto specs = workload(2);
  const auto expected = together(options(), specs);
  for (const int32_t block_size : {1, 8, 32}) {
    SCOPED_TRACE(testing::Message() << "block size " << block_size);
    LocalOptions other = options();
    other.block_size = block_size;
    other.num_blocks = 8192;
    expect_equal(together(other, specs), expected);
  }
}

TEST_P(Machine, OffloadedWeightsAreResidentOnes) {
  LocalOptions offloaded = options();
  offloaded.offload_bytes = uint64_t{1} << 40;  // all
  const auto specs = workload(3);
  expect_equal(together(offloaded, specs), together(options(), specs));
}

INSTANTIATE_TEST_SUITE_P(Maps, Machine, testing::ValuesIn(layer_maps()), case_name);
INSTANTIATE_TEST_SUITE_P(Demo, Machine, testing::ValuesIn(demo_model()), case_name);

}  // namespace
}  // namespace lckv
