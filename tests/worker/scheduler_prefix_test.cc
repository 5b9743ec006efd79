// Which rows a sequence need not run because others have.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/worker/scheduler_harness.h"

namespace lckv {
namespace {

constexpr char kOrdinary[] = "0_1";
constexpr char kCondensed[] = "0_3_3_3_4";  // units: layers 0, 3 and 4

SchedulerOptions sharing_options(const PassPlan& passes) {
  SchedulerOptions options = ample_options(passes);
  options.prefix_caching = true;
  return options;
}

// Steps until the sequence starts; the position that its first row is at.
int32_t first_row(SchedulerHarness& harness, uint64_t id) {
  for (int i = 0; i < 100; ++i) {
    const StepPlan plan = harness.step();
    for (const SeatOpening& opening : plan.opened) {
      if (raw(opening.sequence) != id) continue;
      return ordinary_of(harness, plan, 0, id)->first_position;
    }
  }
  ADD_FAILURE() << "sequence " << id << " never starts";
  return -1;
}

int32_t num_cached(const SchedulerHarness& harness, uint64_t id) {
  for (const SequenceEvent& event : harness.events) {
    const bool starts = event.kind == SequenceEvent::Kind::kStarted;
    if (starts && raw(event.sequence) == id) return event.num_cached_tokens;
  }
  return -1;
}

SequenceSpec spec_with(const std::vector<int32_t>& prompt, int32_t max_new_tokens) {
  SequenceSpec spec{.prompt = prompt};
  spec.max_new_tokens = max_new_tokens;
  return spec;
}

class SchedulerPrefix : public testing::TestWithParam<const char*> {
 protected:
  const PassPlan passes_ = passes_of(GetParam());
};

TEST_P(SchedulerPrefix, WholeChunksOfARunPromptAreNotRunAgain) {
  SchedulerHarness harness(sharing_options(passes_), passes_);
  harness.submit(1, spec_of(18, 3));
  harness.run();
  EXPECT_EQ(harness.scheduler.load().num_free_blocks, harness.scheduler.load().num_blocks);
  EXPECT_GT(harness.scheduler.load().num_idle_blocks, 0);
  harness.submit(2, spec_of(18, 3));
  EXPECT_EQ(first_row(harness, 2), 16);
  harness.run();
  EXPECT_EQ(num_cached(harness, 1), 0);
  EXPECT_EQ(num_cached(harness, 2), 16);
  EXPECT_EQ(harness.num_tokens(2), 3);
  const SchedulerLoad load = harness.scheduler.load();
  EXPECT_EQ(load.num_prefix_queries, 36U);
  EXPECT_EQ(load.num_prefix_hits, 16U);
  EXPECT_EQ(load.num_prompt_rows, 20U);
}

TEST_P(SchedulerPrefix, TheLastPromptTokenIsAlwaysRun) {
  SchedulerHarness harness(sharing_options(passes_), passes_);
  harness.submit(1, spec_of(16, 0));
  harness.run();
  harness.submit(2, spec_of(16, 0));
  EXPECT_EQ(first_row(harness, 2), 12);
  harness.run();
  EXPECT_TRUE(harness.finished(2));
}

TEST_P(SchedulerPrefix, RunningSequencesShareToo) {
  SchedulerHarness harness(sharing_options(passes_), passes_);
  harness.submit(1, spec_of(18, 100));
  while (harness.num_tokens(1) == 0) harness.step();
  const int32_t before = harness.scheduler.load().num_free_blocks;
  harness.submit(2, spec_of(18, 100));
  EXPECT_EQ(first_row(harness, 2), 16);
  // Positions 16 and 17 take one block in each unit.
  EXPECT_GE(harness.scheduler.load().num_free_blocks, before - 2 * passes_.num_units());
  harness.scheduler.cancel(SequenceId{1});
  harness.run();
  EXPECT_EQ(harness.num_tokens(2), 100);
  EXPECT_EQ(harness.scheduler.load().num_free_blocks, harness.scheduler.load().num_blocks);
}

TEST_P(SchedulerPrefix, NobodySharesAcrossTenantsAndSaltsOrWhoSkips) {
  SchedulerHarness harness(sharing_options(passes_), passes_);
  SequenceSpec spec = spec_of(18, 1);
  spec.tenant = "a";
  harness.submit(1, spec);
  harness.run();
  SequenceSpec other_tenant = spec;
  other_tenant.tenant = "b";
  SequenceSpec salted = spec;
  salted.prefix_salt = "s";
  SequenceSpec skipping = spec;
  skipping.skip_prefix_cache = true;
  SequenceSpec scored = spec;
  scored.num_prompt_logprobs = 0;
  uint64_t id = 2;
  for (const SequenceSpec& alone : {other_tenant, salted, skipping, scored}) {
    harness.submit(id, alone);
    EXPECT_EQ(first_row(harness, id), 0) << id;
    harness.run();
    ++id;
  }
  harness.submit(id, spec);
  EXPECT_EQ(first_row(harness, id), 16);
  harness.run();
}

TEST_P(SchedulerPrefix, WhoSkipsLeavesNothingBehind) {
  SchedulerHarness harness(sharing_options(passes_), passes_);
  SequenceSpec spec = spec_of(18, 1);
  spec.skip_prefix_cache = true;
  harness.submit(1, spec);
  harness.run();
  EXPECT_EQ(harness.scheduler.load().num_idle_blocks, 0);
  harness.submit(2, spec_of(18, 1));
  EXPECT_EQ(first_row(harness, 2), 0);
  harness.run();
}

TEST_P(SchedulerPrefix, OffMeansOff) {
  SchedulerHarness harness(ample_options(passes_), passes_);
  for (const uint64_t id : {1, 2}) {
    harness.submit(id, spec_of(18, 1));
    EXPECT_EQ(first_row(harness, id), 0);
    harness.run();
  }
  EXPECT_EQ(harness.scheduler.load().num_idle_blocks, 0);
}

TEST_P(SchedulerPrefix, IdleBlocksAreTakenBeforeAnyoneGivesWay) {
  SchedulerOptions options = sharing_options(passes_);
  options.max_context = 40;
  options.num_blocks = 10 * passes_.num_units();  // one sequence's
  SchedulerHarness harness(options, passes_);
  for (int32_t i = 0; i < 6; ++i) {
    SequenceSpec spec = spec_of(30, 8);
    for (int32_t& token : spec.prompt) token += 100 * i;
    harness.submit(i + 1, spec);
    harness.run();
    EXPECT_EQ(harness.finish_of(i + 1).num_preemptions, 0);
  }
  EXPECT_EQ(harness.scheduler.load().num_preemptions, 0U);
}

TEST_P(SchedulerPrefix, WhoGaveWayTakesItsOwnBlocksAgain) {
  SchedulerOptions options = sharing_options(passes_);
  options.num_host_blocks = 0;
  options.max_context = 64;
  options.num_blocks = 16 * passes_.num_units();
  SchedulerHarness harness(options, passes_);
  SequenceSpec other = spec_of(40, 1);
  for (int32_t& token : other.prompt) token += 1000;
  harness.submit(1, spec_of(30, 4));
  while (harness.num_tokens(1) == 0) harness.step();
  harness.scheduler.pause(SequenceId{1});
  harness.submit(2, other);
  EXPECT_EQ(first_row(harness, 2), 0);
  while (harness.scheduler.has_work()) harness.step();
  harness.scheduler.unpause(SequenceId{1});
  // Room for 16 chunks: ten were written over, of the seven there were the first six are left.
  EXPECT_EQ(first_row(harness, 1), 24);
  harness.run();
  EXPECT_EQ(harness.finish_of(1).num_preemptions, 1);
  EXPECT_EQ(num_cached(harness, 1), 0);  // of its start, when there was nothing
  EXPECT_EQ(harness.num_tokens(1), 4);
}

INSTANTIATE_TEST_SUITE_P(Maps, SchedulerPrefix, testing::Values(kOrdinary, kCondensed),
                         [](const auto& info) {
                           return info.index == 0 ? "Ordinary" : "Condensed";
                         });

// What the second turn of a conversation finds: prompt and answer of the first, or the prompt.
int32_t second_turn(const SchedulerOptions& options, const PassPlan& passes) {
  SchedulerHarness harness(options, passes);
  SequenceSpec first = spec_of(10, 11);
  harness.submit(1, first);
  harness.run();
  std::vector<int32_t> prompt = first.prompt;
  prompt.resize(10 + 11, 7);
  prompt.resize(30, 9);
  harness.submit(2, spec_with(prompt, 1));
  const int32_t position = first_row(harness, 2);
  harness.run();
  return position;
}

TEST(SchedulerPrefixAnswers, AreSharedWhereTheyAreWhatAPromptGives) {
  const PassPlan ordinary = passes_of(kOrdinary);
  // The last generated token is never run.
  EXPECT_EQ(second_turn(sharing_options(ordinary), ordinary), 20);
  const PassPlan condensed = passes_of(kCondensed);
  SchedulerOptions options = sharing_options(condensed);
  EXPECT_EQ(second_turn(options, condensed), 8);
  options.prefill_tolerance = 0.0F;
  EXPECT_EQ(second_turn(options, condensed), 20);
  options.official_decode = true;
  EXPECT_EQ(second_turn(options, condensed), 8);
}

TEST(SchedulerPrefixWindows, ReproducibleHitsEndWhereWindowsBegin) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerOptions options = sharing_options(passes);
  options.reproducible = true;
  options.prefill_lookahead = 6;
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(30, 1));
  harness.run();
  harness.submit(2, spec_of(30, 1));
  EXPECT_EQ(first_row(harness, 2), 24);
  harness.run();
  harness.submit(3, spec_of(23, 1));
  EXPECT_EQ(first_row(harness, 3), 12);
  harness.run();
}

TEST(SchedulerPrefixWindows, BlocksBehindEveryWindowAreSkipped) {
  const PassPlan passes = passes_of("0s_1s", 6);
  SchedulerHarness harness(sharing_options(passes), passes);
  harness.submit(1, spec_of(41, 1));
  harness.run();
  harness.submit(2, spec_of(41, 1));
  const StepPlan plan = harness.step();
  EXPECT_EQ(ordinary_of(harness, plan, 0, 2)->first_position, 40);
  // A row at 40 sees positions from 35 on: eight blocks are behind, in each of two units.
  ASSERT_EQ(plan.trims.size(), 2U);
  EXPECT_EQ(plan.trims.front().num_blocks, 8);
  EXPECT_EQ(plan.appends.size(), 2U * 3);
  harness.run();
}

TEST(SchedulerPrefixModes, IteratedPromptsShareNothing) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerHarness harness(sharing_options(passes), passes);
  SequenceSpec iterated = spec_of(18, 1);
  iterated.prefill_mode = PrefillMode::kIterated;
  harness.submit(1, iterated);
  harness.run();
  EXPECT_EQ(harness.scheduler.load().num_idle_blocks, 0);
  harness.submit(2, spec_of(18, 1));
  EXPECT_EQ(first_row(harness, 2), 0);
  harness.run();
  harness.submit(3, iterated);
  EXPECT_EQ(first_row(harness, 3), 0);
  harness.run();
}

// In a map without cycles rows are written before they are read within a step; a walk's are not.
TEST(SchedulerPrefixSteps, OneStepSharesWhereItsRowsAreWrittenFirst) {
  for (const bool cyclic : {false, true}) {
    const PassPlan passes = passes_of(cyclic ? kCondensed : kOrdinary);
    SchedulerHarness harness(sharing_options(passes), passes);
    for (const uint64_t id : {1, 2, 3}) harness.submit(id, spec_of(18, 2));
    const StepPlan plan = harness.step();
    EXPECT_EQ(ordinary_of(harness, plan, 0, 3)->first_position, cyclic ? 0 : 16);
    harness.run();
    EXPECT_EQ(harness.scheduler.load().num_free_blocks, harness.scheduler.load().num_blocks);
  }
}

TEST(SchedulerPrefixMemory, SharedBlocksAreNoRoomThatTheLastCouldGiveAlone) {
  const PassPlan passes = passes_of(kOrdinary);
  SchedulerOptions options = sharing_options(passes);
  options.max_context = 32;
  options.num_blocks = 8 * 2;
  SchedulerHarness harness(options, passes);
  for (const uint64_t id : {1, 2, 3}) harness.submit(id, spec_of(21, 11));
  harness.run();
  for (const uint64_t id : {1, 2, 3}) EXPECT_EQ(harness.num_tokens(id), 11);
  EXPECT_GT(harness.scheduler.load().num_preemptions, 0U);
  EXPECT_EQ(harness.scheduler.load().num_free_blocks, harness.scheduler.load().num_blocks);
}

}  // namespace
}  // namespace lckv
