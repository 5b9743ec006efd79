#include "worker/service/step_frames.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lckv {
namespace {

using internal::v1::Step;
using internal::v1::WorkerFrame;
using ::testing::ElementsAre;

SequenceEvent token(int32_t id) { return {.token = id}; }

SequenceEvent with_logprob(SequenceEvent event, float own, int num_top) {
  event.logprob = TokenLogprob{.own = own};
  for (int i = 0; i < num_top; ++i) {
    event.logprob->top_ids.push_back(i);
    event.logprob->top_logprobs.push_back(-1.0F - static_cast<float>(i));
  }
  return event;
}

TEST(StepFramesTest, TokensOfAllSequencesShareColumns) {
  StepFrames frames(7);
  frames.token(10, token(1));
  frames.token(11, token(2));
  frames.token(10, token(3));
  const std::vector<WorkerFrame> taken = frames.take();
  ASSERT_EQ(taken.size(), 1U);
  const Step& step = taken[0].step();
  EXPECT_EQ(step.step(), 7U);
  EXPECT_THAT(step.handle(), ElementsAre(10, 11, 10));
  EXPECT_THAT(step.token(), ElementsAre(1, 2, 3));
  EXPECT_EQ(step.logprobs_size(), 0);
}

TEST(StepFramesTest, LogprobsAreAColumnAsSoonAsOneSequenceAsks) {
  StepFrames frames(1);
  frames.token(10, token(1));
  frames.token(11, with_logprob(token(2), -0.5F, 2));
  frames.token(12, token(3));
  const Step step = frames.take()[0].step();
  ASSERT_EQ(step.logprobs_size(), 3);
  EXPECT_FALSE(step.logprobs(0).has_own());
  EXPECT_EQ(step.logprobs(1).own(), -0.5F);
  EXPECT_THAT(step.logprobs(1).top_ids(), ElementsAre(0, 1));
  EXPECT_THAT(step.logprobs(1).top_logprobs(), ElementsAre(-1, -2));
  EXPECT_FALSE(step.logprobs(2).has_own());
}

TEST(StepFramesTest, PromptLogprobsFormRunsWithTheFirstTokenEmpty) {
  StepFrames frames(1);
  SequenceEvent event{.kind = SequenceEvent::Kind::kPromptLogprob};
  frames.started(10, {.num_cached_tokens = 32}, absl::Milliseconds(1500), true);
  for (event.position = 1; event.position <= 2; ++event.position) {
    frames.prompt_logprob(10, with_logprob(event, -0.25F, 0));
  }
  event.position = 5;
  frames.prompt_logprob(11, with_logprob(event, -1, 0));
  const Step step = frames.take()[0].step();
  ASSERT_EQ(step.started_size(), 1);
  EXPECT_EQ(step.started(0).queue_seconds(), 1.5);
  EXPECT_EQ(step.started(0).num_cached_tokens(), 32U);
  ASSERT_EQ(step.prompt_logprobs_size(), 2);
  EXPECT_EQ(step.prompt_logprobs(0).handle(), 10U);
  EXPECT_EQ(step.prompt_logprobs(0).position(), 0U);
  ASSERT_EQ(step.prompt_logprobs(0).logprobs_size(), 3);
  EXPECT_FALSE(step.prompt_logprobs(0).logprobs(0).has_own());
  EXPECT_EQ(step.prompt_logprobs(0).logprobs(2).own(), -0.25F);
  EXPECT_EQ(step.prompt_logprobs(1).position(), 5U);
}

TEST(StepFramesTest, LargeStepsAreCutIntoFramesThatKeepTheOrder) {
  StepFrames frames(3);
  SequenceEvent event{.kind = SequenceEvent::Kind::kPromptLogprob};
  constexpr int kPositions = 64;
  for (event.position = 1; event.position <= kPositions; ++event.position) {
    frames.prompt_logprob(10, with_logprob(event, -1, 32000));
  }
  frames.finished(10, {.kind = SequenceEvent::Kind::kFinished});
  const std::vector<WorkerFrame> taken = frames.take();
  ASSERT_GT(taken.size(), 2U);
  uint32_t next = 1;
  for (const WorkerFrame& frame : taken) {
    EXPECT_LT(frame.ByteSizeLong(), 8U << 20);
    EXPECT_EQ(frame.step().step(), 3U);
    for (const auto& run : frame.step().prompt_logprobs()) {
      EXPECT_EQ(run.position(), next);
      next += run.logprobs_size();
    }
  }
  EXPECT_EQ(next, kPositions + 1U);
  EXPECT_EQ(taken.back().step().finished_size(), 1);
}

TEST(StepFramesTest, FinishedTellsTheReason) {
  StepFrames frames(1);
  frames.finished(10, {.kind = SequenceEvent::Kind::kFinished,
                       .reason = FinishReason::kStopToken,
                       .matched_stop_token = 42,
                       .num_prefill_walks = 3,
                       .num_preemptions = 2});
  frames.finished(11,
                  {.kind = SequenceEvent::Kind::kFinished, .reason = FinishReason::kContextFull});
  const Step step = frames.take()[0].step();
  ASSERT_EQ(step.finished_size(), 2);
  EXPECT_EQ(step.finished(0).reason(), internal::v1::Finished::REASON_STOP_TOKEN);
  EXPECT_EQ(step.finished(0).matched_stop_token(), 42U);
  EXPECT_EQ(step.finished(0).num_prefill_walks(), 3U);
  EXPECT_EQ(step.finished(0).num_preemptions(), 2U);
  EXPECT_EQ(step.finished(1).reason(), internal::v1::Finished::REASON_CONTEXT_FULL);
}

}  // namespace
}  // namespace lckv
