#include "client/workload.h"

#include <algorithm>
#include <sstream>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace lckv {
namespace {

TEST(Workload, LengthsAreReadOrRefused) {
  const auto range = parse_length_range("16-512");
  ASSERT_TRUE(range.ok());
  EXPECT_EQ(range->min, 16u);
  EXPECT_EQ(range->max, 512u);
  EXPECT_EQ(parse_length_range("128")->max, 128u);
  for (const char* wrong : {"", "0", "-", "5-", "9-3", "1-2-3", "x", "-5"}) {
    EXPECT_FALSE(parse_length_range(wrong).ok()) << wrong;
  }
}

TEST(Workload, OneSeedOneWorkloadWithinItsBounds) {
  const WorkloadOptions options{.num_requests = 2000,
                                .prompt_tokens = {3, 9},
                                .output_tokens = {2, 4},
                                .requests_per_second = 50,
                                .vocabulary = 11,
                                .seed = 5};
  const auto requests = draw_workload(options);
  ASSERT_EQ(requests.size(), 2000u);
  uint32_t highest = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_GE(requests[i].prompt.size(), 3u);
    EXPECT_LE(requests[i].prompt.size(), 9u);
    EXPECT_GE(requests[i].output_tokens, 2u);
    EXPECT_LE(requests[i].output_tokens, 4u);
    for (const uint32_t id : requests[i].prompt) highest = std::max(highest, id);
    const absl::Duration before = i == 0 ? absl::ZeroDuration() : requests[i - 1].start;
    EXPECT_GE(requests[i].start, before);
  }
  EXPECT_EQ(highest, 10u);
  EXPECT_NEAR(absl::ToDoubleSeconds(requests.back().start), 1999.0 / 50, 4);
  EXPECT_EQ(draw_workload(options)[77].prompt, requests[77].prompt);
}

TEST(Workload, WithoutARateEverythingStartsAtOnce) {
  const auto requests = draw_workload({.num_requests = 3, .vocabulary = 2});
  EXPECT_EQ(requests.back().start, absl::ZeroDuration());
}

TEST(Workload, ArrivalsFollowTheirProcess) {
  WorkloadOptions options{.num_requests = 9,
                          .requests_per_second = 2,
                          .arrivals = Arrivals::kConstant,
                          .vocabulary = 2};
  EXPECT_EQ(draw_workload(options)[4].start, absl::Seconds(2));
  options.arrivals = Arrivals::kBurst;
  options.burst_size = 3;
  const auto bursts = draw_workload(options);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(bursts[i].start, absl::Milliseconds(1500 * (i / 3))) << i;
}

TEST(Workload, ATraceSharesWhatItsBlocksShare) {
  std::istringstream lines(
      R"({"timestamp": 200, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]}

{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 9]}
{"timestamp": 300.5, "input_length": 5, "output_length": 2}
)");
  const auto requests = parse_trace(lines, {.name = "t", .vocabulary = 1000, .seed = 1});
  ASSERT_TRUE(requests.ok()) << requests.status();
  ASSERT_EQ(requests->size(), 3u);
  const std::vector<uint32_t>& second = (*requests)[0].prompt;  // sorted by time
  const std::vector<uint32_t>& first = (*requests)[1].prompt;
  EXPECT_EQ((*requests)[1].start, absl::Milliseconds(200));
  EXPECT_EQ((*requests)[1].output_tokens, 7u);
  EXPECT_EQ(first.size(), 1100u);
  EXPECT_EQ(second.size(), 600u);
  EXPECT_TRUE(std::equal(second.begin(), second.begin() + 512, first.begin()));
  EXPECT_FALSE(std::equal(second.begin() + 512, second.end(), first.begin() + 512));
  EXPECT_EQ((*requests)[2].prompt.size(), 5u);
}

TEST(Workload, ABrokenTraceIsNamedByLineAndKey) {
  const std::string good = R"({"timestamp": 1, "input_length": 2, "output_length": 3})";
  const auto error_of = [](const std::string& text) {
    std::istringstream lines(text);
    return std::string(parse_trace(lines, {.name = "t", .vocabulary = 9}).status().message());
  };
  EXPECT_EQ(error_of(good), "");
  EXPECT_EQ(error_of(""), "t: no request in it");
  EXPECT_EQ(error_of(good + "\n[]"), "t:2: the line must be a JSON object");
  for (const char* key : {"timestamp", "input_length", "output_length"}) {
    for (const char* wrong : {"-1", "\"x\"", "null", "1e300"}) {
      auto line = nlohmann::json::parse(good);
      line[key] = nlohmann::json::parse(wrong);
      const std::string error = error_of(line.dump());
      EXPECT_EQ(error.find(std::string("t:1: ") + key), 0u) << wrong << ": " << error;
    }
  }
  EXPECT_NE(
      error_of(R"({"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [1.5]})"),
      "");
}

}  // namespace
}  // namespace lckv
