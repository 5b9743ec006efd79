#include "client/request_flags.h"

#include "gtest/gtest.h"
#include "rpc/flags.h"

namespace lckv {
namespace {

absl::StatusOr<v1::GenerateRequest> parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "test");
  CLI::App app;
  RequestFlags flags;
  add_request_flags(app, flags);
  if (parse_flags(app, static_cast<int>(arguments.size()), arguments.data())) {
    return absl::InvalidArgumentError("command line");
  }
  return make_request(flags);
}

TEST(RequestFlags, AbsentFlagsLeaveTheFieldsAbsent) {
  const auto request = parse({"hello"});
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->text(), "hello");
  EXPECT_FALSE(request->sampling().has_temperature());
  EXPECT_FALSE(request->sampling().has_seed());
  EXPECT_FALSE(request->stopping().has_max_new_tokens());
  EXPECT_FALSE(request->output().has_num_logprobs());
}

TEST(RequestFlags, ZeroIsAValue) {
  const auto request = parse({"--token-ids", "1,2,3", "--temperature", "0", "--max-new-tokens", "0",
                              "--logprobs", "0", "--logit-bias", "5=-1.5,7=2", "--stop", "a",
                              "--stop", "b,c", "--prefill-mode", "iterated"});
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->token_ids().ids_size(), 3);
  EXPECT_TRUE(request->sampling().has_temperature());
  EXPECT_TRUE(request->stopping().has_max_new_tokens());
  EXPECT_TRUE(request->output().has_num_logprobs());
  EXPECT_FLOAT_EQ(request->sampling().logit_bias().at(5), -1.5F);
  ASSERT_EQ(request->stopping().stop_strings_size(), 2);
  EXPECT_EQ(request->stopping().stop_strings(1), "b,c");
  EXPECT_EQ(request->prefill_mode(), v1::PREFILL_MODE_ITERATED);
}

TEST(RequestFlags, WhatCannotBeWrittenIsRefused) {
  EXPECT_FALSE(parse({}).ok());
  EXPECT_FALSE(parse({"text", "--token-ids", "1"}).ok());
  EXPECT_FALSE(parse({"text", "--logit-bias", "5"}).ok());
  EXPECT_FALSE(parse({"text", "--prefill-mode", "other"}).ok());
}

}  // namespace
}  // namespace lckv
