// Which rows a step holds: chunks, walks, passes, decoding, ends.
#include "worker/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/worker/scheduler_harness.h"
#include "worker/scheduler/lookahead_cost.h"

namespace lckv {
namespace {

using testing::ElementsAre;

constexpr char kOrdinary[] = "0_1_2_3";
constexpr char kCondensed[] = "0_3_3_3_4";  // layer 0, group of 1 to 3, layer 4
constexpr char kTwoGroups[] = "2_2_2_5_5_5";

TEST(Scheduler, CutsAPromptByTheBudget) {
  const PassPlan passes = passes_of(kOrdinary);
  SchedulerOptions options = ample_options(passes);
  options.max_row_layers = 10 * 4;
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(24, 1));
  std::vector<int32_t> rows;
  while (harness.scheduler.has_work()) {
    const StepPlan plan = harness.step();
    EXPECT_LE(plan.num_row_layers, options.max_row_layers);
    if (plan.ordinary[0].num_rows > 0) rows.push_back(plan.ordinary[0].num_rows);
  }
  EXPECT_THAT(rows, ElementsAre(10, 10, 4));
}

TEST(Scheduler, DecodingRowsRideBesideAPrefill) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerOptions options = ample_options(passes);
  options.max_row_layers = 12 * 5;
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(2, 200));
  while (harness.num_tokens(1) == 0) harness.step();
  harness.submit(2, spec_of(100, 1));
  while (!harness.finished(2)) {
    const StepPlan plan = harness.step();
    EXPECT_LE(plan.num_row_layers, options.max_row_layers);
    EXPECT_NE(ordinary_of(harness, plan, 0, 1), nullptr);
    EXPECT_NE(walk_of(harness, plan, 0, 1), nullptr);
    EXPECT_NE(ordinary_of(harness, plan, 1, 1), nullptr);
  }
}

TEST(Scheduler, RowsFoundSettledRunTheLayersAboveInTheNextStep) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerOptions options = ample_options(passes);
  options.prefill_lookahead = 8;
  SchedulerHarness harness(options, passes);
  harness.settled = [](const WalkSegment&) { return 5; };
  harness.submit(1, spec_of(20, 1));

  const StepPlan first = harness.step();
  const WalkSegment* walk = walk_of(harness, first, 0, 1);
  ASSERT_NE(walk, nullptr);
  EXPECT_EQ(walk->num_rows, 8);
  EXPECT_EQ(walk->num_new, 8);
  EXPECT_TRUE(walk->warm);
  EXPECT_EQ(first.ordinary[1].num_rows, 1);  // its first row is settled whatever comes out

  const StepPlan second = harness.step();
  walk = walk_of(harness, second, 0, 1);
  ASSERT_NE(walk, nullptr);
  EXPECT_EQ(walk->first_position, 5);
  EXPECT_EQ(walk->num_rows, 8);
  EXPECT_EQ(walk->num_new, 5);  // positions 5 to 7 were walked before
  EXPECT_EQ(second.ordinary[0].num_rows, 5);
  const OrdinarySegment* above = ordinary_of(harness, second, 1, 1);
  ASSERT_NE(above, nullptr);
  EXPECT_EQ(above->first_position, 1);
  EXPECT_EQ(above->num_rows, 5);
}

TEST(Scheduler, AnOpenWalkHoldsItsSequenceOnly) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerOptions options = ample_options(passes);
  options.prefill_lookahead = 8;
  options.max_uncommitted_plans = 2;
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(1, 20));
  harness.step();
  harness.submit(2, spec_of(30, 1));
  const std::optional<StepPlan> first = harness.plan();
  const std::optional<StepPlan> second = harness.plan();
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_EQ(first->groups[0].segments.size(), 2U);
  EXPECT_EQ(second->groups[0].segments.size(), 1U);
  EXPECT_EQ(harness.on_seat(second->groups[0].segments[0].seat), 1U);
  EXPECT_EQ(harness.plan(), std::nullopt);  // as many as may be are out
}

TEST(Scheduler, NamesATokenThatIsNotKnownYet) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerOptions options = ample_options(passes);
  options.max_uncommitted_plans = 2;
  SchedulerHarness harness(options, passes);
  harness.submit(1, spec_of(1, 5));
  const std::optional<StepPlan> first = harness.plan();
  const std::optional<StepPlan> second = harness.plan();
  ASSERT_TRUE(first.has_value() && second.has_value());
  ASSERT_EQ(first->samples.size(), 1U);
  ASSERT_EQ(second->tokens.size(), 1U);
  EXPECT_EQ(second->tokens[0].step, first->step);
  EXPECT_EQ(second->tokens[0].sample, 0);
  EXPECT_EQ(second->samples[0].index, 1);
  harness.commit(*first);
  const std::optional<StepPlan> third = harness.plan();
  ASSERT_TRUE(third.has_value());
  EXPECT_EQ(third->tokens[0].step, second->step);
}

TEST(Scheduler, DropsWhatWasPlannedBeyondTheEnd) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerOptions options = ample_options(passes);
  options.max_uncommitted_plans = 2;
  SchedulerHarness harness(options, passes);
  SequenceSpec spec = spec_of(1, 5);
  spec.eos_token_ids = {7};
  harness.submit(1, spec);
  const std::optional<StepPlan> first = harness.plan();
  const std::optional<StepPlan> second = harness.plan();
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_EQ(harness.commit(*first).size(), 3U);  // started, token, finished
  // The plan that is still out names its blocks.
  EXPECT_LT(harness.scheduler.load().num_free_blocks, options.num_blocks);
  EXPECT_TRUE(harness.commit(*second).empty());
  EXPECT_EQ(harness.scheduler.load().num_free_blocks, options.num_blocks);
}

TEST(Scheduler, ReproducibleWindowsAreWholeChunks) {
  const PassPlan passes = passes_of(kTwoGroups);
  SchedulerOptions options = ample_options(passes);
  options.reproducible = true;
  options.prefill_lookahead = 8;
  options.max_row_layers = 10 * 6;  // a chunk and little more
  SchedulerHarness harness(options, passes);
  harness.settled = [](const WalkSegment& walk) { return (walk.num_rows + 1) / 2; };
  harness.submit(1, spec_of(21, 2));
  harness.submit(2, spec_of(19, 2));
  while (harness.scheduler.has_work()) {
    const StepPlan plan = harness.step();
    for (const GroupRows& group : plan.groups) {
      for (const WalkSegment& walk : group.segments) {
        const int32_t prompt = harness.on_seat(walk.seat) == 1 ? 21 : 19;
        if (walk.first_position >= prompt) continue;
        const int32_t chunk_end = std::min(prompt, (walk.first_position / 8 + 1) * 8);
        EXPECT_EQ(walk.first_position + walk.num_rows, chunk_end);
        if (walk.first_position % 8 == 0) {
          EXPECT_EQ(walk.num_new, walk.num_rows);
        }
      }
    }
  }
  EXPECT_EQ(harness.num_tokens(1) + harness.num_tokens(2), 4);
}

TEST(Scheduler, IteratedPromptsRunPassAfterPass) {
  const PassPlan passes = passes_of(kCondensed, 0, 3);
  SchedulerOptions options = ample_options(passes);
  options.max_batched_rows = 6;
  SchedulerHarness harness(options, passes);
  SequenceSpec spec = spec_of(9, 1);
  spec.prefill_mode = PrefillMode::kIterated;
  harness.submit(1, spec);
  std::vector<WalkEnd> ends;
  std::vector<int32_t> above;
  while (harness.scheduler.has_work()) {
    const StepPlan plan = harness.step();
    for (const WalkSegment& walk : plan.groups[0].segments) {
      ends.push_back(walk.end);
      above.push_back(plan.ordinary[1].num_rows);
      EXPECT_EQ(walk.staged_position, 0);
      EXPECT_EQ(walk.staged.count, 9);
      EXPECT_EQ(walk.num_new, ends.size() <= 2 ? walk.num_rows : 0);
      EXPECT_FALSE(walk.warm);
    }
  }
  using enum WalkEnd;
  EXPECT_THAT(ends, ElementsAre(kPass, kPassEnd, kPass, kPassEnd, kCommit, kCommit));
  EXPECT_THAT(above, ElementsAre(0, 0, 0, 0, 6, 3));
  EXPECT_EQ(harness.finish_of(1).num_prefill_walks, 6);
}

TEST(Scheduler, OfficialDecodeFeedsShortIteratedPromptsRowByRow) {
  const PassPlan passes = passes_of(kCondensed, 0, 3);
  SchedulerOptions options = ample_options(passes);
  options.official_decode = true;
  SchedulerHarness harness(options, passes);
  SequenceSpec spec = spec_of(3, 2);
  spec.prefill_mode = PrefillMode::kIterated;
  harness.submit(1, spec);
  harness.submit(2, spec_of(3, 2));
  while (harness.scheduler.has_work()) {
    const StepPlan plan = harness.step();
    for (const WalkSegment& walk : plan.groups[0].segments) {
      const bool exact_prompt = harness.on_seat(walk.seat) == 2 && walk.first_position < 3;
      EXPECT_EQ(walk.official_decode, !exact_prompt);
      EXPECT_TRUE(walk.num_rows == 1 || exact_prompt);
    }
  }
}

TEST(Scheduler, ReplaysResumedTokensWithoutSamplingThem) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerHarness harness(ample_options(passes), passes);
  SequenceSpec spec = spec_of(6, 5);
  spec.resumed = {40, 41, 42};
  harness.submit(1, spec);
  std::vector<int32_t> indices;
  while (harness.scheduler.has_work()) {
    for (const SampleRow& sample : harness.step().samples) indices.push_back(sample.index);
  }
  EXPECT_THAT(indices, ElementsAre(3, 4));
  EXPECT_EQ(harness.num_tokens(1), 2);
}

TEST(Scheduler, ToldReasonsToEnd) {
  const PassPlan passes = passes_of(kOrdinary);
  SchedulerHarness harness(ample_options(passes), passes);
  SequenceSpec eos = spec_of(3, 9);
  eos.eos_token_ids = {7};
  eos.min_new_tokens = 2;  // before them, the sampler gives no end
  SequenceSpec stop = spec_of(3, 9);
  stop.stop_token_ids = {5, 7};
  SequenceSpec limit = spec_of(3, 2);
  SequenceSpec full = spec_of(3, 2);
  full.max_is_context = true;
  SequenceSpec before = spec_of(3, 4);
  before.eos_token_ids = {7};
  before.resumed = {1, 7};
  harness.submit(1, eos);
  harness.submit(2, stop);
  harness.submit(3, limit);
  harness.submit(4, full);
  harness.submit(5, before);
  harness.run();
  EXPECT_EQ(harness.finish_of(1).reason, FinishReason::kEos);
  EXPECT_EQ(harness.num_tokens(1), 3);
  EXPECT_EQ(harness.finish_of(2).reason, FinishReason::kStopToken);
  EXPECT_EQ(harness.finish_of(2).matched_stop_token, 7);
  EXPECT_EQ(harness.finish_of(3).reason, FinishReason::kMaxNewTokens);
  EXPECT_EQ(harness.finish_of(4).reason, FinishReason::kContextFull);
  EXPECT_EQ(harness.finish_of(5).reason, FinishReason::kEos);
  EXPECT_EQ(harness.num_tokens(5), 0);
}

TEST(Scheduler, ScoresAPromptWithoutGenerating) {
  const PassPlan passes = passes_of(kCondensed);
  SchedulerHarness harness(ample_options(passes), passes);
  SequenceSpec spec = spec_of(5, 0);
  spec.num_prompt_logprobs = 2;
  harness.submit(1, spec);
  harness.run();
  std::vector<int32_t> positions;
  for (const SequenceEvent& event : harness.events) {
    if (event.kind == SequenceEvent::Kind::kPromptLogprob) positions.push_back(event.position);
  }
  EXPECT_THAT(positions, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(harness.num_tokens(1), 0);
  EXPECT_TRUE(harness.finished(1));
}

TEST(LookaheadCost, FollowsTheLoad) {
  // Alone, a prompt takes as much as it can.
  EXPECT_EQ(choose_lookahead({.rows_left = 512, .tolerance = 0.001F}), 512);
  // Among many, rows that are walked again and again cost the others.
  EXPECT_EQ(choose_lookahead({.rows_left = 512, .num_prompts = 16, .tolerance = 0.001F}), 1);
  // Beside decoding sequences it takes the rows that cost them nothing.
  EXPECT_EQ(choose_lookahead({.rows_left = 512, .num_decoding_rows = 8, .tolerance = 0.001F}), 8);
  // On a machine that has none of these, not more than makes their steps a third longer.
  const LookaheadLoad few = {
      .rows_left = 2000, .num_decoding_rows = 8, .free_rows = 6, .tolerance = 0.001F};
  EXPECT_LE(choose_lookahead(few), 3);
  EXPECT_GT(choose_lookahead(few), 1);
  // Bitwise settling is nearly serial.
  EXPECT_EQ(choose_lookahead({.rows_left = 512}), 16);
  EXPECT_EQ(choose_lookahead({.rows_left = 3}), 3);
}

}  // namespace
}  // namespace lckv
