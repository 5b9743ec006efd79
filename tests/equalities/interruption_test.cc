// Preempted or resumed = uninterrupted; and nothing of one sequence ever shows in another.
#include <algorithm>
#include <cmath>

#include "tests/equalities/equality.h"

namespace lckv {
namespace {

class Interruption : public Equality {
 protected:
  LocalOptions options() const {
    LocalOptions options = Equality::options();
    options.tolerance = default_tolerance();
    return options;
  }
  // Longer ones, so that not all fit.
  std::vector<SequenceSpec> long_workload(uint64_t seed) const {
    auto specs = workload(seed);
    for (SequenceSpec& spec : specs) spec.max_new_tokens = 25;
    return specs;
  }
  // Blocks that the longest sequence needs, and a few more.
  int32_t scarce_blocks(const std::vector<SequenceSpec>& specs) const {
    const auto local = open_local_runner(options());
    EXPECT_TRUE(local.ok()) << local.status();
    int64_t most = 0;
    for (const SequenceSpec& spec : specs) {
      most = std::max(most, local->geometry.blocks_of(static_cast<int64_t>(spec.prompt.size()) +
                                                      spec.max_new_tokens));
    }
    return static_cast<int32_t>(most) + 2;
  }
  static int32_t num_preemptions(const std::vector<Transcript>& transcripts) {
    int32_t sum = 0;
    for (const Transcript& transcript : transcripts) sum += transcript.num_preemptions;
    return sum;
  }
};

TEST_P(Interruption, RecomputedIsUninterrupted) {
  const auto specs = long_workload(1);
  LocalOptions scarce = options();
  scarce.num_blocks = scarce_blocks(specs);
  const auto interrupted = together(scarce, specs);
  EXPECT_GT(num_preemptions(interrupted), 0);
  expect_equal(interrupted, together(options(), specs));
}

TEST_P(Interruption, SwappedIsUninterrupted) {
  if (!has_cycles()) GTEST_SKIP() << "only cyclic maps use the host tier";
  auto specs = long_workload(2);
  for (const SequenceSpec& spec : long_workload(7)) specs.push_back(spec);
  // Narrow windows, so that whoever gives way has settled some.
  LocalOptions plenty = options();
  plenty.lookahead = 4;
  LocalOptions scarce = plenty;
  scarce.num_blocks = scarce_blocks(specs);
  scarce.num_host_blocks = 256;
  const auto replica = open_replica(scarce);
  std::vector<SequenceId> ids;
  for (const SequenceSpec& spec : specs) ids.push_back(replica->submit(spec));
  replica->run();
  EXPECT_GT(replica->scheduler().load().num_swapped_out, 0U);
  std::vector<Transcript> transcripts;
  for (const SequenceId id : ids) transcripts.push_back(replica->transcript(id));
  expect_equal(transcripts, together(plenty, specs));
}

TEST_P(Interruption, ResumedIsUninterrupted) {
  const auto specs = workload(3);
  const auto whole = together(options(), specs);
  std::vector<SequenceSpec> resumed = specs;
  std::vector<Transcript> expected = whole;
  for (size_t i = 0; i < specs.size(); ++i) {
    const auto num_before = static_cast<int32_t>(2 + i);
    auto& tokens = expected[i].tokens;
    ASSERT_GT(static_cast<int32_t>(tokens.size()), num_before);
    resumed[i].resumed.assign(tokens.begin(), tokens.begin() + num_before);
    tokens.erase(tokens.begin(), tokens.begin() + num_before);
    std::erase_if(expected[i].logits,
                  [num_before](const auto& entry) { return entry.first < num_before; });
  }
  expect_equal(together(options(), resumed), expected);
}

// Whatever memory held before: not-a-number or zeros, poisoned or left as others wrote it.
TEST_P(Interruption, OldContentNeverShows) {
  const auto specs = workload(4);
  LocalOptions clean = options();
  clean.fill = 0;
  const auto expected = together(clean, specs);
  for (const Transcript& transcript : expected) {
    for (const auto& [index, logits] : transcript.logits) {
      ASSERT_TRUE(std::all_of(logits.begin(), logits.end(),
                              [](float value) { return std::isfinite(value); }));
    }
  }
  expect_equal(together(options(), specs), expected);

  // Two rounds of other requests first, in a pool that is used up over and over.
  for (const bool poison : {false, true}) {
    LocalOptions used = options();
    used.poison = poison;
    used.num_blocks = scarce_blocks(specs);
    used.num_host_blocks = 16;
    used.staging_rows = 72;
    used.max_num_seqs = 3;
    const auto replica = open_replica(used);
    for (const uint64_t seed : {5, 6}) {
      for (const SequenceSpec& spec : workload(seed)) replica->submit(spec);
      replica->run();
    }
    std::vector<SequenceId> ids;
    for (const SequenceSpec& spec : specs) ids.push_back(replica->submit(spec));
    replica->run();
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ(difference(replica->transcript(ids[i]), expected[i]), "")
          << "sequence " << i << ", poison " << poison;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Maps, Interruption, testing::ValuesIn(layer_maps()), case_name);
INSTANTIATE_TEST_SUITE_P(Demo, Interruption, testing::ValuesIn(demo_model()), case_name);

}  // namespace
}  // namespace lckv
