// Alone = in any batch, in any order of submission, whatever else runs.
#include <algorithm>
#include <random>

#include "tests/equalities/equality.h"

namespace lckv {
namespace {

class Batch : public Equality {};

TEST_P(Batch, AloneIsInAnyBatch) {
  const auto specs = workload(1);
  expect_equal(alone(options(), specs), together(options(), specs));
}

TEST_P(Batch, OrderOfSubmissionDoesNotMatter) {
  constexpr uint32_t kSeed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  const auto specs = workload(2);
  const auto in_order = together(options(), specs);
  std::vector<size_t> order = {0, 1, 2, 3, 4, 5};
  std::mt19937 random(kSeed);
  for (int round = 0; round < 3; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    std::vector<SequenceSpec> shuffled;
    std::vector<Transcript> expected;
    for (const size_t i : order) {
      shuffled.push_back(specs[i]);
      expected.push_back(in_order[i]);
    }
    expect_equal(together(options(), shuffled), expected);
  }
}

// Arrivals and departures at any step.
TEST_P(Batch, ComingAndGoingDoesNotMatter) {
  const auto specs = workload(3);
  const auto expected = alone(options(), specs);
  const auto replica = open_replica(options());
  std::vector<SequenceId> ids;
  for (const SequenceSpec& spec : specs) {
    ids.push_back(replica->submit(spec));
    const SequenceId cancelled = replica->submit(specs[4]);
    replica->step();
    replica->step();
    replica->cancel(cancelled);
  }
  replica->run();
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(difference(replica->transcript(ids[i]), expected[i]), "") << "sequence " << i;
  }
}

// Two plans in flight: tokens are named before they are drawn.
TEST_P(Batch, PlanningAheadDoesNotMatter) {
  LocalOptions ahead = options();
  ahead.max_uncommitted_plans = 2;
  const auto specs = workload(4);
  expect_equal(together(ahead, specs), together(options(), specs));
}

INSTANTIATE_TEST_SUITE_P(Maps, Batch, testing::ValuesIn(layer_maps()), case_name);
INSTANTIATE_TEST_SUITE_P(Demo, Batch, testing::ValuesIn(demo_model()), case_name);

}  // namespace
}  // namespace lckv
