// Random fleets against undisturbed runs. On a failure the seed is printed; LCKV_SIMULATION_SEED
// runs it alone, LCKV_SIMULATION_COUNT says how many are run.
#include "tests/simulation/fleet_simulation.h"

#include <cstdlib>
#include <iostream>

#include "gtest/gtest.h"

namespace lckv::fleet_simulation {
namespace {

TEST(FleetSimulation, NoStreamIsLostUnderAnyOfTheSeeds) {
  int num_streams = 0;
  int num_resumes = 0;
  int num_crashes = 0;
  int num_followed = 0;
  int num_duplicates = 0;
  uint64_t first = 1;
  uint64_t last = LCKV_FLEET_SIMULATION_COUNT;
  if (const char* given = std::getenv("LCKV_SIMULATION_COUNT")) {
    last = std::strtoull(given, nullptr, 10);
  }
  if (const char* given = std::getenv("LCKV_SIMULATION_SEED")) {
    first = last = std::strtoull(given, nullptr, 10);
  }
  for (uint64_t seed = first; seed <= last; ++seed) {
    const Outcome outcome = simulate(seed);
    ASSERT_EQ(outcome.error, "") << "seed " << seed;
    num_streams += outcome.num_streams;
    num_resumes += outcome.num_resumes;
    num_crashes += outcome.num_crashes;
    num_followed += outcome.num_followed;
    num_duplicates += outcome.num_duplicates;
  }
  std::cout << num_streams << " calls, " << num_crashes << " crashes, " << num_resumes
            << " resumes, " << num_followed << " sessions followed by another, " << num_duplicates
            << " links closed for another to the same replica\n";
  // A fleet in which nothing happens would prove nothing.
  EXPECT_GT(num_resumes, static_cast<int>(last - first));
  EXPECT_GT(num_followed, static_cast<int>(last - first));
  EXPECT_GT(num_duplicates, static_cast<int>(last - first));
}

class PlantedDefect : public ::testing::TestWithParam<Defect> {};

TEST_P(PlantedDefect, IsFoundWithinAThousandSeeds) {
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    const Outcome outcome = simulate(seed, GetParam());
    if (outcome.error.empty()) continue;
    std::cout << "seed " << seed << ": " << outcome.error << "\n";
    return;
  }
  FAIL() << "defect " << static_cast<int>(GetParam()) << " was not found";
}

INSTANTIATE_TEST_SUITE_P(All, PlantedDefect,
                         ::testing::Values(Defect::kResumeEarly, Defect::kResumeLate,
                                           Defect::kStaleDelivery, Defect::kLostCancel,
                                           Defect::kLostContinue, Defect::kForgottenOrphan,
                                           Defect::kDoubleCredit, Defect::kCrossedFingerprint,
                                           Defect::kOtherSeed, Defect::kUnwatchedSilence,
                                           Defect::kDeafPredecessor, Defect::kForgottenDuplicate));

}  // namespace
}  // namespace lckv::fleet_simulation
