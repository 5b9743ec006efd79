#include "worker/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference_ops.h"

namespace lckv {
namespace {

constexpr SeatId kSeat{1};

class SamplerTest : public testing::Test {
 protected:
  void open(SequenceSpec spec, std::vector<int32_t> generated = {}) {
    spec.sampling.temperature = 0.0F;
    sampler_.open({.seat = kSeat,
                   .spec = std::make_shared<const SequenceSpec>(std::move(spec)),
                   .generated = std::move(generated)});
  }
  SampleResult draw(std::vector<float> logits, int32_t index = 0, int32_t num_logprobs = -1) {
    return sampler_.draw({.seat = kSeat, .index = index, .num_logprobs = num_logprobs},
                         logits.data());
  }

  std::unique_ptr<Ops> ops_ = open_reference_ops(DType::kFloat32);
  Sampler sampler_{4, 4, *ops_};
};

TEST_F(SamplerTest, LogprobsAreTheModelsOwn) {
  SequenceSpec spec;
  spec.sampling.logit_bias = {{3, 100.0F}};
  open(std::move(spec));
  const SampleResult result = draw({1.0F, 0.0F, 0.0F, 0.0F}, 0, 2);
  EXPECT_EQ(result.token, 3);
  const float sum = std::log(std::exp(1.0F) + 3.0F);
  EXPECT_NEAR(result.logprob->own, -sum, 1e-6);
  EXPECT_THAT(result.logprob->top_ids, testing::ElementsAre(0, 1));
  EXPECT_NEAR(result.logprob->top_logprobs[0], 1.0F - sum, 1e-6);
}

TEST_F(SamplerTest, NoLogprobsWhereNoneAreAskedFor) {
  open({});
  EXPECT_FALSE(draw({1.0F, 0.0F, 0.0F, 0.0F}).logprob.has_value());
  EXPECT_TRUE(draw({1.0F, 0.0F, 0.0F, 0.0F}, 1, 0).logprob->top_ids.empty());
}

TEST_F(SamplerTest, RepetitionPenaltyCountsPromptAndGenerated) {
  SequenceSpec spec{.prompt = {0}};
  spec.sampling.repetition_penalty = 2.0F;
  open(std::move(spec), {1});
  // 3 / 2 and 2.8 / 2 are below 1.6; then 2 is penalised too, and a negative logit doubles.
  EXPECT_EQ(draw({3.0F, 2.8F, 1.6F, -1.0F}).token, 2);
  EXPECT_EQ(draw({-1.0F, -1.0F, -1.0F, -1.5F}, 1).token, 3);
}

TEST_F(SamplerTest, PresenceAndFrequencyCountGeneratedOnly) {
  SequenceSpec spec{.prompt = {0, 0}};
  spec.sampling.presence_penalty = 0.5F;
  spec.sampling.frequency_penalty = 1.0F;
  open(std::move(spec), {1, 1});
  // Token 1 loses 0.5 + 2.
  EXPECT_EQ(draw({2.0F, 4.4F, 0.0F, 0.0F}).token, 0);
  // Now token 0 has lost 1.5, token 1 still 2.5.
  EXPECT_EQ(draw({2.0F, 4.4F, 0.0F, 0.0F}, 1).token, 1);
}

TEST_F(SamplerTest, NothingStopsBeforeItMay) {
  open({.min_new_tokens = 2, .eos_token_ids = {0}, .stop_token_ids = {1}});
  const std::vector<float> logits = {3.0F, 2.0F, 1.0F, 0.0F};
  EXPECT_EQ(draw(logits, 0).token, 2);
  EXPECT_EQ(draw(logits, 1).token, 2);
  EXPECT_EQ(draw(logits, 2).token, 0);
}

TEST_F(SamplerTest, AClosedSeatForgets) {
  SequenceSpec spec{.prompt = {0}};
  spec.sampling.repetition_penalty = 4.0F;
  open(spec);
  EXPECT_EQ(draw({2.0F, 1.0F, 0.0F, 0.0F}).token, 1);
  sampler_.close(kSeat);
  spec.prompt = {2};
  open(spec);
  EXPECT_EQ(draw({2.0F, 1.0F, 0.0F, 0.0F}).token, 0);
}

TEST_F(SamplerTest, PromptTokensAreOnlyScored) {
  open({});
  std::vector<float> logits = {0.0F, 0.0F, 0.0F, 0.0F};
  const SampleResult result = sampler_.draw(
      {.kind = SampleRow::Kind::kPromptLogprob, .seat = kSeat, .target = 2, .num_logprobs = 0},
      logits.data());
  EXPECT_EQ(result.token, 2);
  EXPECT_NEAR(result.logprob->own, -std::log(4.0F), 1e-6);
}

}  // namespace
}  // namespace lckv
