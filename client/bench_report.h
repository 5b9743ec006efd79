// The figures of one `lckv bench` run.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/latency.h"

namespace lckv {

struct BenchReport {
  int64_t num_completed = 0;
  int64_t num_failed = 0;
  std::map<std::string, int64_t> errors;  // by the line that describes them
  int64_t num_prompt_tokens = 0;          // of completed requests, as the next
  int64_t num_output_tokens = 0;
  int64_t num_resumed = 0;      // of completed requests, those that went on after a loss
  double duration_seconds = 0;  // from the first request sent to the last one ended
  Summary ttft;
  Summary tpot;
  Summary itl;
  Summary end_to_end;
  std::vector<int64_t> tokens_by_second;  // that arrived, of all requests

  double per_second(int64_t count) const {
    return duration_seconds > 0 ? static_cast<double>(count) / duration_seconds : 0;
  }
};

// Collects streams as they end. Thread-safe.
class BenchTally {
 public:
  explicit BenchTally(absl::Time begin) : begin_(begin) {}

  // `num_resumes`: how often the client had to call again.
  void add(const StreamTimes& times, int64_t num_prompt_tokens, int num_resumes,
           const absl::Status& status);
  BenchReport report(absl::Time end) const;

 private:
  const absl::Time begin_;
  mutable std::mutex mutex_;  // guards everything below
  BenchReport counts_;
  std::vector<double> ttft_, tpot_, itl_, end_to_end_;
};

// Milliseconds for times.
std::string bench_text(const BenchReport& report);
std::string bench_json(const BenchReport& report);

}  // namespace lckv
