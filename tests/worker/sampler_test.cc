#include "worker/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference_ops.h"
#include "tests/support/probed_ops.h"

namespace lckv {
namespace {

constexpr SeatId kSeat{1};

// Counts what the host waits for.
class CountedOps final : public ProbedOps {
 public:
  CountedOps() : ProbedOps(open_reference_ops(DType::kFloat32), 0) {}
  void logprobs(std::span<const LogprobArgs> rows, int32_t vocabulary) override {
    ++num_logprobs;
    ProbedOps::logprobs(rows, vocabulary);
  }
  void sample(std::span<const SampleArgs> rows) override {
    ++num_samples;
    ProbedOps::sample(rows);
  }

  int num_logprobs = 0;
  int num_samples = 0;
};

class SamplerTest : public testing::Test {
 protected:
  void open(SequenceSpec spec, std::vector<int32_t> generated = {}) {
    spec.sampling.temperature = 0.0F;
    sampler_.open({.seat = kSeat,
                   .spec = std::make_shared<const SequenceSpec>(std::move(spec)),
                   .generated = std::move(generated)},
                  ++last_step_);
  }
  Draw launch(std::span<const SampleRow> rows, float* logits) {
    results_.go_back(0);
    const auto ids = results_.take<int32_t>(rows.size());
    return sampler_.draw(++last_step_, rows, logits, ids, results_);
  }
  std::vector<SampleResult> draw_all(std::span<const SampleRow> rows, float* logits) {
    std::vector<SampleResult> results;
    sampler_.read(launch(rows, logits), results);
    return results;
  }
  SampleResult draw(std::vector<float> logits, int32_t index = 0, int32_t num_logprobs = -1) {
    const SampleRow row{.seat = kSeat, .index = index, .num_logprobs = num_logprobs};
    return draw_all({&row, 1}, logits.data()).front();
  }

  CountedOps ops_;
  Sampler sampler_{{.max_num_seqs = 4, .max_rows = 5, .vocabulary = 4}, ops_};
  StepResults results_{1024, ops_};
  uint64_t last_step_ = 0;
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

// A step may be read after the next one has closed the seat, or given it to another.
TEST_F(SamplerTest, WhatIsReadLateIsCountedForTheSequenceThatDrewIt) {
  SequenceSpec spec{.prompt = {3}};
  spec.sampling.repetition_penalty = 4.0F;
  open(spec);
  const SampleRow row{.seat = kSeat};
  EXPECT_TRUE(sampler_.need_tokens({&row, 1}));
  std::vector<float> logits = {2.0F, 1.0F, 0.0F, 0.0F};
  const Draw drawn = launch({&row, 1}, logits.data());
  sampler_.close(kSeat);
  std::vector<SampleResult> results;
  sampler_.read(drawn, results);
  EXPECT_EQ(results.at(0).token, 0);
  open(spec);
  sampler_.read(drawn, results);
  EXPECT_EQ(draw({2.0F, 1.0F, 0.0F, 0.0F}).token, 0) << "not drawn by this one";
  EXPECT_EQ(draw({2.0F, 1.0F, 0.0F, 0.0F}).token, 1);
}

TEST_F(SamplerTest, CountsTheRowsThatHaveRoom) {
  const std::vector<SampleRow> rows = {{}, {.num_logprobs = 0}, {.num_logprobs = 3},
                                       {}, {.num_logprobs = 4}, {}};
  EXPECT_EQ(sampler_.count_rows(rows, 1024), 5U) << "max_rows";
  EXPECT_EQ(sampler_.count_rows(rows, 16 + 64), 5U);
  EXPECT_EQ(sampler_.count_rows(rows, 16 + 63), 4U);
  EXPECT_EQ(sampler_.count_rows(rows, 16), 2U);
  EXPECT_EQ(sampler_.count_rows(rows, 15), 1U);
  EXPECT_EQ(sampler_.count_rows(std::span(rows).subspan(4), 0), 0U);
}

TEST_F(SamplerTest, PromptTokensAreOnlyScored) {
  open({});
  std::vector<float> logits = {0.0F, 0.0F, 0.0F, 0.0F};
  const SampleRow row{
      .kind = SampleRow::Kind::kPromptLogprob, .seat = kSeat, .target = 2, .num_logprobs = 0};
  const SampleResult result = draw_all({&row, 1}, logits.data()).front();
  EXPECT_EQ(result.token, 2);
  EXPECT_NEAR(result.logprob->own, -std::log(4.0F), 1e-6);
}

TEST_F(SamplerTest, RowsOfAllKindsTogetherAreEachItsOwn) {
  SequenceSpec penalized{.prompt = {0}};
  penalized.sampling = {.temperature = 0.0F, .repetition_penalty = 4.0F};
  for (const int32_t seat : {0, 1, 2, 3}) {
    SequenceSpec spec = seat == 3 ? penalized : SequenceSpec{};
    spec.sampling.temperature = 0.0F;
    sampler_.open(
        {.seat = SeatId{seat}, .spec = std::make_shared<const SequenceSpec>(std::move(spec))},
        ++last_step_);
  }
  const std::vector<SampleRow> rows = {
      {.seat = SeatId{2}},
      {.kind = SampleRow::Kind::kPromptLogprob, .seat = SeatId{0}, .target = 3, .num_logprobs = 0},
      {.seat = SeatId{3}},
      {.seat = SeatId{1}, .num_logprobs = 1},
      {.seat = SeatId{0}},
  };
  const std::vector<float> logits = {0.0F, 5.0F, 0.0F, 0.0F,   // the largest: 1
                                     0.0F, 0.0F, 0.0F, 0.0F,   // only scored
                                     3.0F, 0.0F, 2.0F, 0.0F,   // 0, but for the penalty
                                     0.0F, 0.0F, 0.0F, 5.0F,   // 3
                                     5.0F, 0.0F, 0.0F, 0.0F};  // 0
  const auto tokens = [&] {
    std::vector<float> own = logits;
    std::vector<int32_t> drawn;
    for (const SampleResult& result : draw_all(rows, own.data())) {
      drawn.push_back(result.token);
    }
    return drawn;
  };
  EXPECT_THAT(tokens(), testing::ElementsAre(1, 3, 2, 3, 0));
  // What was drawn is counted for its own seat: now 2 is penalized too, in seat 3 alone.
  EXPECT_THAT(tokens(), testing::ElementsAre(1, 3, 0, 3, 0));
}

// Rows whose logits a request changes keep the model's own, whatever their neighbours do.
TEST_F(SamplerTest, LogprobsOfAllRowsAreFoundTogether) {
  for (const int32_t seat : {0, 1, 2, 3}) {
    SequenceSpec spec;
    spec.sampling.temperature = 0.0F;
    if (seat != 2) spec.sampling.logit_bias = {{seat, 100.0F}};
    sampler_.open(
        {.seat = SeatId{seat}, .spec = std::make_shared<const SequenceSpec>(std::move(spec))},
        ++last_step_);
  }
  const std::vector<SampleRow> rows = {
      {.seat = SeatId{3}, .num_logprobs = 1},
      {.kind = SampleRow::Kind::kPromptLogprob, .seat = SeatId{2}, .target = 0, .num_logprobs = 4},
      {.seat = SeatId{1}},
      {.seat = SeatId{2}, .num_logprobs = 0},
      {.seat = SeatId{0}, .num_logprobs = 2},
  };
  const std::vector<std::vector<float>> logits = {{1.0F, 5.0F, 0.0F, 2.0F},
                                                  {4.0F, 3.0F, 2.0F, 1.0F},
                                                  {0.0F, 0.0F, 0.0F, 0.0F},
                                                  {0.0F, 0.0F, 7.0F, 0.0F},
                                                  {1.0F, 2.0F, 3.0F, 4.0F}};
  for (int turn = 1; turn <= 2; ++turn) {
    std::vector<float> own;
    for (const auto& row : logits) own.insert(own.end(), row.begin(), row.end());
    const int num_samples = ops_.num_samples;
    const auto results = draw_all(rows, own.data());
    EXPECT_EQ(ops_.num_samples, num_samples + 1);
    EXPECT_EQ(ops_.num_logprobs, turn);
    const std::vector<int32_t> tokens = {3, 0, 1, 2, 0};
    const std::vector<std::vector<int32_t>> top = {{1}, {0, 1, 2, 3}, {}, {}, {3, 2}};
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(results[i].token, tokens[i]) << i;
      ASSERT_EQ(results[i].logprob.has_value(), rows[i].num_logprobs >= 0) << i;
      if (!results[i].logprob) continue;
      double sum = 0.0;
      for (const float logit : logits[i]) sum += std::exp(static_cast<double>(logit));
      EXPECT_NEAR(results[i].logprob->own, logits[i][tokens[i]] - std::log(sum), 1e-6) << i;
      EXPECT_EQ(results[i].logprob->top_ids, top[i]) << i;
      for (size_t j = 0; j < top[i].size(); ++j) {
        EXPECT_NEAR(results[i].logprob->top_logprobs[j], logits[i][top[i][j]] - std::log(sum),
                    1e-6);
      }
    }
  }
}

}  // namespace
}  // namespace lckv
