// 10,000 random loads (LCKV_SIMULATION_SEEDS to run others: "first,count") must give the naive
// streams; each planted defect must be found.
#include <gtest/gtest.h>

#include <charconv>
#include <cstdlib>
#include <string>

#include "tests/simulation/simulation.h"

namespace lckv::simulation {
namespace {

struct Seeds {
  uint64_t first = 1;
  uint64_t count = LCKV_SIMULATION_COUNT;
};

Seeds seeds() {
  Seeds seeds;
  const char* const text = std::getenv("LCKV_SIMULATION_SEEDS");
  if (text == nullptr) return seeds;
  const std::string value = text;
  const char* const end = value.data() + value.size();
  const auto first = std::from_chars(value.data(), end, seeds.first);
  if (first.ptr != end) std::from_chars(first.ptr + 1, end, seeds.count);
  return seeds;
}

TEST(Simulation, EveryScheduleGivesTheNaiveStreams) {
  const auto [first, count] = seeds();
  std::printf("seeds %lu to %lu\n", first, first + count - 1);
  uint64_t num_preemptions = 0;
  uint64_t num_swapped_out = 0;
  uint64_t num_queries = 0;
  uint64_t num_hits = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const Outcome outcome = simulate(seed);
    ASSERT_EQ(outcome.error, "") << "seed " << seed;
    num_preemptions += outcome.load.num_preemptions;
    num_swapped_out += outcome.load.num_swapped_out;
    num_queries += outcome.load.num_prefix_queries;
    num_hits += outcome.load.num_prefix_hits;
  }
  std::printf("%lu preemptions, of them %lu to the host tier\n", num_preemptions, num_swapped_out);
  std::printf("%lu of %lu prompt tokens shared\n", num_hits, num_queries);
  if (count < 100) return;
  EXPECT_GT(num_hits, num_queries / 50);
  // The loads put both ways of preemption to the test.
  EXPECT_GT(num_swapped_out, count / 100);
  EXPECT_GT(num_preemptions - num_swapped_out, count / 100);
}

class PlantedDefect : public testing::TestWithParam<Defect> {};

TEST_P(PlantedDefect, IsFound) {
  // A defect shows only where the load touches it; over these seeds each one must.
  constexpr uint64_t kSeeds = 200;
  uint64_t found = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    if (!simulate(seed, GetParam()).error.empty()) ++found;
  }
  std::printf("found with %lu of %lu seeds\n", found, kSeeds);
  EXPECT_GT(found, 0U);
}

INSTANTIATE_TEST_SUITE_P(All, PlantedDefect,
                         testing::Values(Defect::kLostAppend, Defect::kSharedBlock,
                                         Defect::kSharedStagingRow, Defect::kTokenReference,
                                         Defect::kUnsettledRow, Defect::kEarlyRelease,
                                         Defect::kMisalignedWindow, Defect::kStaleOrder,
                                         Defect::kSharedAcrossTenants, Defect::kSharedFreedEarly,
                                         Defect::kSharedInexact));

}  // namespace
}  // namespace lckv::simulation
