#include "worker/service/submit_check.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

using internal::v1::Submit;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

SubmitLimits limits() {
  return {.vocabulary = 100,
          .max_context = 16,
          .max_logprobs = 5,
          .max_iterated_prompt = 8,
          .has_cyclic_groups = true,
          .eos_token_ids = {2, 3}};
}

Submit plain_submit() {
  Submit submit;
  submit.set_handle(1);
  for (const uint32_t id : {4, 5, 6, 7}) submit.add_prompt(id);
  submit.mutable_sampling()->set_top_p(1);
  submit.mutable_sampling()->set_repetition_penalty(1);
  return submit;
}

struct BadSubmit {
  std::string name;
  std::string field;
  void (*spoil)(Submit&);
};

class BadSubmitTest : public ::testing::TestWithParam<BadSubmit> {};

TEST_P(BadSubmitTest, IsRefusedNamingTheField) {
  Submit submit = plain_submit();
  ASSERT_TRUE(check_submit(submit, limits()).ok());
  GetParam().spoil(submit);
  const absl::Status status = check_submit(submit, limits()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(violated_field(status), GetParam().field) << status;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Fields, BadSubmitTest,
    ::testing::Values(
        BadSubmit{"EmptyPrompt", "prompt", [](Submit& s) { s.clear_prompt(); }},
        BadSubmit{"PromptId", "prompt", [](Submit& s) { s.add_prompt(100); }},
        BadSubmit{"HugePromptId", "prompt", [](Submit& s) { s.add_prompt(0xFFFFFFFF); }},
        BadSubmit{"LongPrompt", "prompt",
                  [](Submit& s) {
                    while (s.prompt_size() < 16) s.add_prompt(1);
                  }},
        BadSubmit{"ResumedId", "resume.choices.ids", [](Submit& s) { s.add_resumed(100); }},
        BadSubmit{"ResumedIsMore", "resume.choices.ids",
                  [](Submit& s) {
                    s.set_max_new_tokens(0);
                    s.add_resumed(1);
                  }},
        BadSubmit{"StopId", "stopping.stop_token_ids",
                  [](Submit& s) { s.add_stop_token_ids(100); }},
        BadSubmit{"ManyStopIds", "stopping.stop_token_ids",
                  [](Submit& s) {
                    for (int i = 0; i < 65; ++i) s.add_stop_token_ids(i);
                  }},
        BadSubmit{"MinAboveMax", "stopping.min_new_tokens",
                  [](Submit& s) {
                    s.set_max_new_tokens(2);
                    s.set_min_new_tokens(3);
                  }},
        BadSubmit{"NanTemperature", "sampling.temperature",
                  [](Submit& s) { s.mutable_sampling()->set_temperature(kNan); }},
        BadSubmit{"NegativeTemperature", "sampling.temperature",
                  [](Submit& s) { s.mutable_sampling()->set_temperature(-1); }},
        BadSubmit{"ZeroTopP", "sampling.top_p",
                  [](Submit& s) { s.mutable_sampling()->set_top_p(0); }},
        BadSubmit{"NanTopP", "sampling.top_p",
                  [](Submit& s) { s.mutable_sampling()->set_top_p(kNan); }},
        BadSubmit{"MinPOne", "sampling.min_p",
                  [](Submit& s) { s.mutable_sampling()->set_min_p(1); }},
        BadSubmit{"ZeroRepetition", "sampling.repetition_penalty",
                  [](Submit& s) { s.mutable_sampling()->set_repetition_penalty(0); }},
        BadSubmit{"InfinitePresence", "sampling.presence_penalty",
                  [](Submit& s) { s.mutable_sampling()->set_presence_penalty(kInfinity); }},
        BadSubmit{"NanFrequency", "sampling.frequency_penalty",
                  [](Submit& s) { s.mutable_sampling()->set_frequency_penalty(kNan); }},
        BadSubmit{"BiasId", "sampling.logit_bias",
                  [](Submit& s) { (*s.mutable_sampling()->mutable_logit_bias())[100] = 1; }},
        BadSubmit{"NanBias", "sampling.logit_bias",
                  [](Submit& s) { (*s.mutable_sampling()->mutable_logit_bias())[1] = kNan; }},
        BadSubmit{"ManyBiases", "sampling.logit_bias",
                  [](Submit& s) {
                    for (int i = 0; i < 1025; ++i) (*s.mutable_sampling()->mutable_logit_bias())[i];
                  }},
        BadSubmit{"Logprobs", "output.num_logprobs", [](Submit& s) { s.set_num_logprobs(6); }},
        BadSubmit{"PromptLogprobs", "output.num_prompt_logprobs",
                  [](Submit& s) { s.set_num_prompt_logprobs(0xFFFFFFFF); }},
        BadSubmit{"Choice", "num_choices", [](Submit& s) { s.set_choice(128); }},
        BadSubmit{"RequestId", "request_id",
                  [](Submit& s) { s.set_request_id(std::string(257, 'a')); }},
        BadSubmit{"Salt", "prefix_cache.salt",
                  [](Submit& s) { s.set_prefix_salt(std::string(257, 'a')); }},
        BadSubmit{"Tenant", "tenant", [](Submit& s) { s.set_tenant(std::string(257, 'a')); }},
        BadSubmit{"UnknownMode", "prefill_mode",
                  [](Submit& s) { s.set_prefill_mode(static_cast<internal::v1::PrefillMode>(9)); }},
        BadSubmit{"IteratedBeyondStaging", "prefill_mode",
                  [](Submit& s) {
                    while (s.prompt_size() < 9) s.add_prompt(1);
                    s.set_prefill_mode(internal::v1::PREFILL_MODE_ITERATED);
                  }}),
    [](const auto& info) { return info.param.name; });

TEST(CheckSubmitTest, CarriesEveryField) {
  Submit submit = plain_submit();
  submit.set_request_id("r");
  submit.set_tenant("t");
  submit.set_prefix_salt("s");
  submit.set_skip_prefix_cache(true);
  submit.set_priority(-3);
  submit.set_choice(7);
  submit.add_resumed(9);
  submit.set_max_new_tokens(5);
  submit.set_min_new_tokens(2);
  submit.add_stop_token_ids(8);
  submit.add_stop_token_ids(6);
  submit.set_num_logprobs(0);
  submit.set_num_prompt_logprobs(5);
  submit.set_prefill_mode(internal::v1::PREFILL_MODE_ITERATED);
  internal::v1::Sampling& sampling = *submit.mutable_sampling();
  sampling.set_temperature(0.5);
  sampling.set_top_k(3);
  sampling.set_min_p(0.25);
  sampling.set_seed(~uint64_t{0});
  (*sampling.mutable_logit_bias())[50] = 1;
  (*sampling.mutable_logit_bias())[5] = -1;

  const auto spec = check_submit(submit, limits());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ((*spec)->request_id, "r");
  EXPECT_EQ((*spec)->tenant, "t");
  EXPECT_EQ((*spec)->prefix_salt, "s");
  EXPECT_TRUE((*spec)->skip_prefix_cache);
  EXPECT_EQ((*spec)->priority, -3);
  EXPECT_EQ((*spec)->sampling.choice, 7U);
  EXPECT_THAT((*spec)->prompt, ElementsAre(4, 5, 6, 7));
  EXPECT_THAT((*spec)->resumed, ElementsAre(9));
  EXPECT_EQ((*spec)->max_new_tokens, 5);
  EXPECT_FALSE((*spec)->max_is_context);
  EXPECT_EQ((*spec)->min_new_tokens, 2);
  EXPECT_THAT((*spec)->stop_token_ids, ElementsAre(6, 8));
  EXPECT_THAT((*spec)->eos_token_ids, ElementsAre(2, 3));
  EXPECT_EQ((*spec)->num_logprobs, 0);
  EXPECT_EQ((*spec)->num_prompt_logprobs, 5);
  EXPECT_EQ((*spec)->prefill_mode, PrefillMode::kIterated);
  EXPECT_EQ((*spec)->sampling.temperature, 0.5F);
  EXPECT_EQ((*spec)->sampling.top_k, 3U);
  EXPECT_EQ((*spec)->sampling.min_p, 0.25F);
  EXPECT_EQ((*spec)->sampling.seed, ~uint64_t{0});
  EXPECT_THAT((*spec)->sampling.logit_bias, ElementsAre(Pair(5, -1), Pair(50, 1)));
}

TEST(CheckSubmitTest, WhatExceedsTheContextIsCutToIt) {
  Submit submit = plain_submit();
  EXPECT_EQ((*check_submit(submit, limits()))->max_new_tokens, 12);
  EXPECT_TRUE((*check_submit(submit, limits()))->max_is_context);
  submit.set_max_new_tokens(12);
  EXPECT_FALSE((*check_submit(submit, limits()))->max_is_context);
  submit.set_max_new_tokens(0xFFFFFFFF);
  EXPECT_EQ((*check_submit(submit, limits()))->max_new_tokens, 12);
  EXPECT_TRUE((*check_submit(submit, limits()))->max_is_context);
}

TEST(CheckSubmitTest, APromptThatIsOnlyScoredMayFillTheContext) {
  Submit submit = plain_submit();
  while (submit.prompt_size() < 16) submit.add_prompt(1);
  submit.set_max_new_tokens(0);
  EXPECT_TRUE(check_submit(submit, limits()).ok());
  submit.add_prompt(1);
  EXPECT_THAT(std::string(check_submit(submit, limits()).status().message()),
              HasSubstr("17 tokens does not fit the context of 16"));
}

TEST(CheckSubmitTest, IgnoredEosLeavesStopTokens) {
  Submit submit = plain_submit();
  submit.set_ignore_eos(true);
  EXPECT_TRUE((*check_submit(submit, limits()))->eos_token_ids.empty());
}

TEST(CheckSubmitTest, TheModeIsOfNoConsequenceWithoutCyclicGroups) {
  SubmitLimits ordinary = limits();
  ordinary.has_cyclic_groups = false;
  ordinary.max_iterated_prompt = 0;
  ordinary.default_prefill_mode = PrefillMode::kIterated;
  EXPECT_EQ((*check_submit(plain_submit(), ordinary))->prefill_mode, PrefillMode::kExact);
}

}  // namespace
}  // namespace lckv
