#include "client/workload.h"

#include <algorithm>

#include "gtest/gtest.h"

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

}  // namespace
}  // namespace lckv
