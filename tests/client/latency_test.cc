#include "client/latency.h"

#include "client/bench_plot.h"
#include "client/bench_report.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace lckv {
namespace {

absl::Time at(int milliseconds) { return absl::UnixEpoch() + absl::Milliseconds(milliseconds); }

TEST(Latency, PercentilesLieBetweenRanks) {
  const std::vector<double> values = {1, 2, 3, 4, 5};
  EXPECT_DOUBLE_EQ(percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(values, 0.5), 3);
  EXPECT_DOUBLE_EQ(percentile(values, 0.9), 4.6);
  EXPECT_DOUBLE_EQ(percentile(values, 1), 5);
  EXPECT_DOUBLE_EQ(percentile({7}, 0.99), 7);
}

TEST(Latency, SummaryDoesNotNeedOrder) {
  const Summary summary = summarize({5, 1, 4, 2, 3});
  EXPECT_DOUBLE_EQ(summary.mean, 3);
  EXPECT_DOUBLE_EQ(summary.p50, 3);
  EXPECT_DOUBLE_EQ(summarize({}).p99, 0);
}

TEST(Latency, StreamFollowsTheDefinitions) {
  StreamTimes times(at(100));
  times.add(at(150), 0);  // no token: no delivery
  times.add(at(200), 1);
  times.add(at(230), 2);  // one delivery of two tokens is one gap
  times.add(at(300), 1);
  EXPECT_EQ(times.num_tokens(), 4);
  EXPECT_DOUBLE_EQ(times.ttft(), 0.1);
  EXPECT_DOUBLE_EQ(times.end_to_end(), 0.2);
  EXPECT_NEAR(times.tpot(), 0.1 / 3, 1e-12);
  ASSERT_EQ(times.inter_token().size(), 2u);
  EXPECT_DOUBLE_EQ(times.inter_token()[0], 0.03);
  EXPECT_DOUBLE_EQ(times.inter_token()[1], 0.07);
}

TEST(Latency, ReportCountsFailuresApart) {
  BenchTally tally(at(0));
  StreamTimes good(at(0));
  good.add(at(10), 1);
  good.add(at(30), 1);
  tally.add(good, 7, /*num_resumes=*/1, absl::OkStatus());
  StreamTimes cut(at(0));
  cut.add(at(900), 5);
  tally.add(cut, 7, /*num_resumes=*/3, absl::UnavailableError("gone"));
  const auto json = nlohmann::json::parse(bench_json(tally.report(at(2000))));
  EXPECT_EQ(json["completed"], 1);
  EXPECT_EQ(json["failed"], 1);
  EXPECT_EQ(json["resumed"], 1);
  EXPECT_EQ(json["errors"]["UNAVAILABLE: gone"], 1);
  EXPECT_EQ(json["total_input_tokens"], 7);
  EXPECT_DOUBLE_EQ(json["output_throughput"], 1.0);
  EXPECT_DOUBLE_EQ(json["total_token_throughput"], 4.5);
  EXPECT_NEAR(json["ttft_ms"]["p99"], 10, 1e-9);
  EXPECT_NEAR(json["tpot_ms"]["mean"], 20, 1e-9);
}

TEST(Latency, APlotShowsEveryMetricAndSecond) {
  BenchTally tally(at(0));
  for (int i = 1; i <= 50; ++i) {
    StreamTimes times(at(i * 10));
    times.add(at(i * 10 + i), 1);
    times.add(at(i * 60), 3);
    tally.add(times, 1, 0, absl::OkStatus());
  }
  const BenchReport report = tally.report(at(4000));
  EXPECT_EQ(report.tokens_by_second.size(), 4u);
  const std::string svg = bench_svg(report);
  for (const char* part : {"<svg", "</svg>", "TTFT", "ITL", "end-to-end", "4 s", "<polyline"}) {
    EXPECT_NE(svg.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  // Nothing came at all.
  EXPECT_EQ(bench_svg(BenchTally(at(0)).report(at(1))).find("nan"), std::string::npos);
}

}  // namespace
}  // namespace lckv
