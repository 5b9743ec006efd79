// Every limit of the public API, with the field that the refusal names.
#include "router/validation.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/status_mapping.h"
#include "tests/router/fake_leader.h"

namespace lckv {
namespace {

using v1::GenerateRequest;

v1::GenerateRequest good_request() {
  GenerateRequest request;
  for (uint32_t id = 10; id < 20; ++id) request.mutable_token_ids()->add_ids(id);
  return request;
}

std::shared_ptr<const ModelInfo> demo_model(
    const std::function<void(internal::v1::Hello&)>& change = nullptr) {
  internal::v1::Hello hello = demo_hello();
  if (change) change(hello);
  auto model = make_model_info(std::move(hello), nullptr);
  EXPECT_TRUE(model.ok()) << model.status();
  return *model;
}

absl::StatusOr<GenerateSpec> check(const GenerateRequest& request,
                                   const std::shared_ptr<const ModelInfo>& model) {
  if (absl::Status status = check_request(request); !status.ok()) return status;
  return make_spec(request, model, 77);
}

struct Case {
  const char* field;
  std::function<void(GenerateRequest&)> change;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();
const std::string kLongName(257, 'x');

template <typename Field, typename Value>
void fill(Field* field, int count, Value value) {
  for (int i = 0; i < count; ++i) *field->Add() = value;
}

std::vector<Case> prompt_and_sampling_cases() {
  return {
      {"request_id", [](auto& r) { r.set_request_id(kLongName); }},
      {"tenant", [](auto& r) { r.set_tenant(kLongName); }},
      {"affinity", [](auto& r) { r.set_affinity(kLongName); }},
      {"prefix_cache.salt", [](auto& r) { r.mutable_prefix_cache()->set_salt(kLongName); }},
      {"chat", [](auto& r) { r.mutable_chat()->add_messages(); }, absl::StatusCode::kUnimplemented},
      {"prompt", [](auto& r) { r.clear_token_ids(); }},
      {"token_ids.ids", [](auto& r) { r.mutable_token_ids()->clear_ids(); }},
      {"token_ids.ids[3]", [](auto& r) { r.mutable_token_ids()->set_ids(3, 4096); }},
      {"token_ids.ids", [](auto& r) { fill(r.mutable_token_ids()->mutable_ids(), 502, 5u); }},
      {"text", [](auto& r) { r.set_text(std::string(100000, 'x')); }},
      {"num_choices", [](auto& r) { r.set_num_choices(129); }},
      {"prefill_mode", [](auto& r) { r.set_prefill_mode(static_cast<v1::PrefillMode>(3)); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-0.1f); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(kNan); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(kInf); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(1.01f); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(kNan); }},
      {"sampling.min_p", [](auto& r) { r.mutable_sampling()->set_min_p(1); }},
      {"sampling.min_p", [](auto& r) { r.mutable_sampling()->set_min_p(-0.5f); }},
      {"sampling.repetition_penalty",
       [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
      {"sampling.presence_penalty",
       [](auto& r) { r.mutable_sampling()->set_presence_penalty(kInf); }},
      {"sampling.frequency_penalty",
       [](auto& r) { r.mutable_sampling()->set_frequency_penalty(kNan); }},
      {"sampling.logit_bias",
       [](auto& r) {
         for (uint32_t i = 0; i < 1025; ++i) (*r.mutable_sampling()->mutable_logit_bias())[i] = 1;
       }},
      {"sampling.logit_bias[7]",
       [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[7] = kNan; }},
      {"sampling.logit_bias[4096]",
       [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[4096] = 1; }},
  };
}

std::vector<Case> other_cases() {
  return {
      {"stopping.min_new_tokens",
       [](auto& r) {
         r.mutable_stopping()->set_max_new_tokens(3);
         r.mutable_stopping()->set_min_new_tokens(4);
       }},
      {"stopping.stop_strings",
       [](auto& r) { fill(r.mutable_stopping()->mutable_stop_strings(), 17, std::string("x")); }},
      {"stopping.stop_strings[0]", [](auto& r) { r.mutable_stopping()->add_stop_strings(""); }},
      {"stopping.stop_strings[0]",
       [](auto& r) { r.mutable_stopping()->add_stop_strings(kLongName); }},
      {"stopping.stop_token_ids",
       [](auto& r) { fill(r.mutable_stopping()->mutable_stop_token_ids(), 65, 5u); }},
      {"stopping.stop_token_ids[0]",
       [](auto& r) { r.mutable_stopping()->add_stop_token_ids(5000); }},
      {"output.num_logprobs", [](auto& r) { r.mutable_output()->set_num_logprobs(21); }},
      {"output.num_prompt_logprobs",
       [](auto& r) { r.mutable_output()->set_num_prompt_logprobs(21); }},
      {"resume.choices[0].choice",
       [](auto& r) { r.mutable_resume()->add_choices()->set_choice(1); }},
      {"resume.choices[1].choice",
       [](auto& r) {
         r.mutable_resume()->add_choices();
         r.mutable_resume()->add_choices();
       }},
      {"resume.choices[0].ids[0]",
       [](auto& r) {
         r.mutable_sampling()->set_seed(1);
         r.mutable_resume()->add_choices()->add_ids(4096);
       }},
      {"sampling.seed", [](auto& r) { r.mutable_resume()->add_choices()->add_ids(4); }},
      {"resume.choices",
       [](auto& r) {
         r.mutable_sampling()->set_seed(1);
         fill(r.mutable_resume()->add_choices()->mutable_ids(), 503, 5u);
       }},
      {"resume.choices",
       [](auto& r) {
         r.mutable_sampling()->set_seed(1);
         r.mutable_stopping()->set_max_new_tokens(2);
         fill(r.mutable_resume()->add_choices()->mutable_ids(), 3, 5u);
       }},
  };
}

TEST(ValidationTest, EachLimitNamesItsField) {
  std::vector<Case> cases = prompt_and_sampling_cases();
  for (const Case& c : other_cases()) cases.push_back(c);
  const auto model = demo_model();
  for (const Case& c : cases) {
    GenerateRequest request = good_request();
    c.change(request);
    const auto spec = check(request, model);
    EXPECT_EQ(spec.status().code(), c.code) << c.field << ": " << spec.status();
    EXPECT_EQ(violated_field(spec.status()).value_or(""), c.field) << spec.status();
    EXPECT_THAT(std::string(spec.status().message()), ::testing::HasSubstr(c.field));
  }
}

TEST(ValidationTest, EachLimitItselfIsAllowed) {
  GenerateRequest request = good_request();
  const std::string name(256, 'x');
  request.set_request_id(name);
  request.set_tenant(name);
  request.set_affinity(name);
  request.mutable_prefix_cache()->set_salt(name);
  request.set_num_choices(128);
  auto& sampling = *request.mutable_sampling();
  sampling.set_top_p(1);
  sampling.set_min_p(0.999f);
  for (uint32_t i = 0; i < 1024; ++i) (*sampling.mutable_logit_bias())[i] = 1;
  auto& stopping = *request.mutable_stopping();
  stopping.set_max_new_tokens(0);
  for (int i = 0; i < 16; ++i) stopping.add_stop_strings(name);
  for (uint32_t i = 0; i < 64; ++i) stopping.add_stop_token_ids(i);
  request.mutable_output()->set_num_logprobs(20);
  // Nothing is generated, so the prompt may fill the context.
  for (int i = 0; i < 502; ++i) request.mutable_token_ids()->add_ids(4095);
  const auto spec = check(request, demo_model());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->choices.size(), 128u);
  EXPECT_EQ(spec->prompt.size(), 512u);
  EXPECT_EQ(make_submit(*spec, 127, {}).prefix_salt(), name);
  EXPECT_FALSE(make_submit(*spec, 127, {}).skip_prefix_cache());
}

TEST(ValidationTest, DefaultsComeFromTheRequestThenTheConfigThenTheApi) {
  const auto model = demo_model([](internal::v1::Hello& hello) {
    hello.mutable_generation_defaults()->set_temperature(0.7f);
    hello.mutable_generation_defaults()->set_top_p(0.9f);
    hello.mutable_generation_defaults()->set_max_new_tokens(9);
  });
  GenerateRequest request = good_request();
  request.mutable_sampling()->set_top_p(0.5f);
  const auto spec = check(request, model);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->sampling.temperature(), 0.7f);
  EXPECT_EQ(spec->sampling.top_p(), 0.5f);
  EXPECT_EQ(spec->sampling.repetition_penalty(), 1.0f);
  EXPECT_EQ(spec->sampling.seed(), 77u);
  EXPECT_EQ(spec->max_new_tokens, 9u);
  EXPECT_TRUE(spec->sampling.has_presence_penalty());
}

TEST(ValidationTest, TextToAModelWithoutTokenizerIsRefused) {
  const auto model = demo_model([](internal::v1::Hello& hello) { hello.clear_tokenizer(); });
  GenerateRequest request;
  request.set_text("hello");
  EXPECT_EQ(violated_field(check(request, model).status()), "text");
  EXPECT_TRUE(check(good_request(), model).ok());
  request = good_request();
  request.mutable_stopping()->add_stop_strings("x");
  EXPECT_EQ(violated_field(check(request, model).status()), "stopping.stop_strings");
}

TEST(ValidationTest, AllLogprobsWhereTheServerAllowsThem) {
  const auto model = demo_model([](internal::v1::Hello& hello) { hello.set_max_logprobs(-1); });
  GenerateRequest request = good_request();
  request.mutable_output()->set_num_logprobs(4096);
  EXPECT_TRUE(check(request, model).ok());
  request.mutable_output()->set_num_logprobs(4097);
  EXPECT_FALSE(check(request, model).ok());
}

}  // namespace
}  // namespace lckv
