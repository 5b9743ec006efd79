// What sequences hold, give up and get back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/worker/scheduler_harness.h"

namespace lckv {
namespace {

constexpr char kOrdinary[] = "0_1";
constexpr char kCondensed[] = "0_3_3_3_4";  // units: layers 0, 3 and 4

// Room for `positions` positions in every unit.
SchedulerOptions options_for(const PassPlan& passes, int32_t positions) {
  SchedulerOptions options = ample_options(passes);
  options.slots_per_block.assign(passes.num_units(), 1);
  options.max_context = positions;
  options.num_blocks = positions * passes.num_units();
  return options;
}

void expect_all_free(const SchedulerHarness& harness) {
  const SchedulerLoad load = harness.scheduler.load();
  EXPECT_EQ(load.num_free_blocks, load.num_blocks);
  EXPECT_EQ(load.num_free_host_blocks, load.num_host_blocks);
  EXPECT_EQ(load.num_running, 0);
  EXPECT_EQ(load.num_waiting, 0);
}

TEST(SchedulerMemory, TheLastInRankGivesWayToTheHostTier) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerHarness harness(options_for(passes, 30), passes);
  SequenceSpec urgent = spec_of(8, 20);
  urgent.priority = 1;
  harness.submit(1, spec_of(8, 12));
  harness.submit(2, urgent);
  harness.submit(3, spec_of(8, 12));
  std::vector<BlockCopy> out;
  std::vector<BlockCopy> back;
  while (harness.scheduler.has_work()) {
    const StepPlan plan = harness.step();
    out.insert(out.end(), plan.to_host.begin(), plan.to_host.end());
    back.insert(back.end(), plan.to_device.begin(), plan.to_device.end());
  }
  EXPECT_GE(harness.finish_of(3).num_preemptions, 1);
  EXPECT_EQ(harness.finish_of(2).num_preemptions, 0);
  EXPECT_GT(out.size(), 0U);
  EXPECT_EQ(out.size(), back.size());
  EXPECT_GE(harness.scheduler.load().num_swapped_out, 1U);
  for (const uint64_t id : {1, 3}) EXPECT_EQ(harness.num_tokens(id), 12);
  EXPECT_EQ(harness.num_tokens(2), 20);
  expect_all_free(harness);
}

TEST(SchedulerMemory, WithoutCyclesOrHostTierRowsAreComputedAgain) {
  for (const bool cyclic : {false, true}) {
    const PassPlan passes = passes_of(cyclic ? kCondensed : kOrdinary);
    SchedulerOptions options = options_for(passes, 24);
    if (cyclic) options.num_host_blocks = 0;
    SchedulerHarness harness(options, passes);
    SequenceSpec spec = spec_of(8, 10);
    spec.num_prompt_logprobs = 0;
    harness.submit(1, spec);
    harness.submit(2, spec);
    harness.run();
    EXPECT_EQ(harness.scheduler.load().num_swapped_out, 0U);
    EXPECT_GE(harness.finish_of(2).num_preemptions, 1);
    EXPECT_EQ(harness.finish_of(1).num_preemptions, 0);
    EXPECT_EQ(harness.num_tokens(2), 10);
    int32_t num_scored = 0;
    for (const SequenceEvent& event : harness.events) {
      if (event.kind == SequenceEvent::Kind::kPromptLogprob) ++num_scored;
    }
    EXPECT_EQ(num_scored, 14);  // none is told twice
    EXPECT_EQ(harness.scheduler.load().num_prompt_rows, 16U);
    expect_all_free(harness);
  }
}

TEST(SchedulerMemory, APausedSequenceGivesWayFirst) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerHarness harness(options_for(passes, 24), passes);
  harness.submit(1, spec_of(8, 14));
  harness.step();
  harness.submit(2, spec_of(8, 14));
  harness.step();
  harness.scheduler.pause(SequenceId{1});
  while (harness.scheduler.has_work()) harness.step();
  EXPECT_EQ(harness.finish_of(2).num_preemptions, 0);
  EXPECT_FALSE(harness.finished(1));
  harness.scheduler.unpause(SequenceId{1});
  harness.run();
  EXPECT_EQ(harness.finish_of(1).num_preemptions, 1);
  EXPECT_EQ(harness.num_tokens(1), 14);
  expect_all_free(harness);
}

TEST(SchedulerMemory, AReproducibleChunkStartsAgainAfterPreemption) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerOptions options = options_for(passes, 40);
  options.reproducible = true;
  options.prefill_lookahead = 8;
  SchedulerHarness harness(options, passes);
  harness.settled = [](const WalkSegment&) { return 3; };
  harness.submit(1, spec_of(20, 1));
  for (int i = 0; i < 5; ++i) harness.step();  // in its second chunk
  harness.scheduler.pause(SequenceId{1});
  SequenceSpec other = spec_of(38, 1);
  other.priority = 1;
  harness.submit(2, other);
  while (harness.scheduler.has_work()) harness.step();
  harness.scheduler.unpause(SequenceId{1});
  const StepPlan plan = harness.step();
  ASSERT_EQ(plan.opened.size(), 1U);
  const WalkSegment* walk = walk_of(harness, plan, 0, 1);
  ASSERT_NE(walk, nullptr);
  EXPECT_EQ(walk->first_position, 8);
  EXPECT_EQ(walk->num_new, 8);
  EXPECT_GT(plan.to_device.size(), 0U);
  harness.run();
  expect_all_free(harness);
}

TEST(SchedulerMemory, CancellingFreesWithTheNextPlanOrTheCommit) {
  const PassPlan passes = passes_of(kCondensed);
  const SchedulerOptions options = options_for(passes, 30);
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(8, 10));
  const std::optional<StepPlan> plan = harness.plan();
  ASSERT_TRUE(plan.has_value());
  harness.scheduler.cancel(SequenceId{1});
  EXPECT_LT(harness.scheduler.load().num_free_blocks, options.num_blocks);
  EXPECT_TRUE(harness.commit(*plan).empty());
  EXPECT_EQ(harness.scheduler.load().num_free_blocks, options.num_blocks);
  EXPECT_EQ(harness.scheduler.load().num_free_staging_rows, options.staging_rows);
  EXPECT_TRUE(harness.scheduler.has_work());  // its seat is to be closed
  const StepPlan last = harness.step();
  EXPECT_EQ(last.closed.size(), 1U);
  EXPECT_EQ(last.num_row_layers, 0);
  EXPECT_FALSE(harness.scheduler.has_work());
}

TEST(SchedulerMemory, BlocksBehindEveryWindowAreTrimmed) {
  const PassPlan passes = passes_of("0s_1s", 6);
  SchedulerOptions options = options_for(passes, 120);
  options.slots_per_block.assign(2, 4);
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(3, 100));
  int32_t most = 0;
  while (harness.scheduler.has_work()) {
    harness.step();
    const SchedulerLoad load = harness.scheduler.load();
    most = std::max(most, load.num_blocks - load.num_free_blocks);
  }
  // A window of 6 touches at most 3 blocks of 4 slots, in each of two units.
  EXPECT_LE(most, 6);
  EXPECT_EQ(harness.num_tokens(1), 100);
}

TEST(SchedulerMemory, OneReaderWithoutAWindowKeepsEverything) {
  const PassPlan passes = passes_of("0s_0", 6);
  const SchedulerOptions options = options_for(passes, 60);
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(3, 50));
  while (!harness.finished(1)) EXPECT_TRUE(harness.step().trims.empty());
}

}  // namespace
}  // namespace lckv
