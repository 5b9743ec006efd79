#include "client/bench_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/connection.h"
#include "client/text_table.h"
#include "nlohmann/json.hpp"

namespace lckv {
namespace {

std::vector<std::string> summary_row(const std::string& name, const Summary& summary) {
  std::vector<std::string> row = {name};
  for (const double seconds : {summary.mean, summary.p50, summary.p90, summary.p99}) {
    row.push_back(absl::StrFormat("%.2f", seconds * 1e3));
  }
  return row;
}

nlohmann::json summary_json(const Summary& summary) {
  return {{"mean", summary.mean * 1e3},
          {"p50", summary.p50 * 1e3},
          {"p90", summary.p90 * 1e3},
          {"p99", summary.p99 * 1e3}};
}

}  // namespace

void BenchTally::add(const StreamTimes& times, int64_t num_prompt_tokens, int num_resumes,
                     const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  for (const StreamTimes::Delivery& delivery : times.deliveries()) {
    const absl::Duration since = std::max(delivery.time - begin_, absl::ZeroDuration());
    const auto second = static_cast<size_t>(absl::ToInt64Seconds(since));
    if (counts_.tokens_by_second.size() <= second) counts_.tokens_by_second.resize(second + 1);
    counts_.tokens_by_second[second] += delivery.num_tokens;
  }
  if (!status.ok()) {
    ++counts_.num_failed;
    ++counts_.errors[describe_error(status)];
    return;
  }
  ++counts_.num_completed;
  if (num_resumes > 0) ++counts_.num_resumed;
  counts_.num_prompt_tokens += num_prompt_tokens;
  counts_.num_output_tokens += times.num_tokens();
  if (times.num_tokens() == 0) return;
  ttft_.push_back(times.ttft());
  end_to_end_.push_back(times.end_to_end());
  if (times.num_tokens() > 1) tpot_.push_back(times.tpot());
  itl_.insert(itl_.end(), times.inter_token().begin(), times.inter_token().end());
}

BenchReport BenchTally::report(absl::Time end) const {
  const std::lock_guard lock(mutex_);
  BenchReport report = counts_;
  report.duration_seconds = absl::ToDoubleSeconds(end - begin_);
  report.ttft = summarize(ttft_);
  report.tpot = summarize(tpot_);
  report.itl = summarize(itl_);
  report.end_to_end = summarize(end_to_end_);
  return report;
}

std::string bench_text(const BenchReport& report) {
  std::string text = absl::StrFormat(
      "%d requests completed, %d of them after a loss, %d failed, in %.2f s\n"
      "%.2f requests/s, %.1f output tokens/s, %.1f tokens/s in all\n\n",
      report.num_completed, report.num_resumed, report.num_failed, report.duration_seconds,
      report.per_second(report.num_completed), report.per_second(report.num_output_tokens),
      report.per_second(report.num_prompt_tokens + report.num_output_tokens));
  absl::StrAppend(&text, format_table({{"ms", "mean", "p50", "p90", "p99"},
                                       summary_row("TTFT", report.ttft),
                                       summary_row("TPOT", report.tpot),
                                       summary_row("ITL", report.itl),
                                       summary_row("end-to-end", report.end_to_end)}));
  for (const auto& [error, count] : report.errors) {
    absl::StrAppend(&text, count, " failed: ", error, "\n");
  }
  return text;
}

std::string bench_json(const BenchReport& report) {
  const nlohmann::json json = {
      {"completed", report.num_completed},
      {"resumed", report.num_resumed},
      {"failed", report.num_failed},
      {"errors", report.errors},
      {"duration_s", report.duration_seconds},
      {"total_input_tokens", report.num_prompt_tokens},
      {"total_output_tokens", report.num_output_tokens},
      {"request_throughput", report.per_second(report.num_completed)},
      {"output_throughput", report.per_second(report.num_output_tokens)},
      {"total_token_throughput",
       report.per_second(report.num_prompt_tokens + report.num_output_tokens)},
      {"ttft_ms", summary_json(report.ttft)},
      {"tpot_ms", summary_json(report.tpot)},
      {"itl_ms", summary_json(report.itl)},
      {"e2el_ms", summary_json(report.end_to_end)},
      {"tokens_by_second", report.tokens_by_second}};
  return json.dump() + "\n";
}

}  // namespace lckv
