// OpenLoad: Generate calls that arrive whether earlier ones have ended or not.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "lckv/v1/inference.grpc.pb.h"

namespace lckv::bench {

struct CallOutcome {
  int kind = 0;  // as the call was started with
  grpc::StatusCode code = grpc::StatusCode::OK;
  // From the moment it was sent; no first token: infinite.
  absl::Duration first_token = absl::InfiniteDuration();
  absl::Duration total;
  absl::Time ended;
  std::vector<absl::Duration> gaps;  // between deliveries of tokens
  bool says_when_to_retry = false;   // RetryInfo and pushback
};

// Owner and thread: the measurement's. Calls run on gRPC's threads.
class OpenLoad {
 public:
  explicit OpenLoad(const std::string& address);
  // Waits for the calls in flight.
  ~OpenLoad();

  void start(int kind, const v1::GenerateRequest& request, absl::Duration deadline);
  // `rate` calls per second for so long, evenly; `begin` starts each.
  static void pace(double rate, absl::Duration duration, const std::function<void(int)>& begin);
  // Waits for the calls in flight; their outcomes since the last call.
  std::vector<CallOutcome> finish();

 private:
  class Call;
  void ended(CallOutcome outcome);

  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs_;
  size_t next_stub_ = 0;
  std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  int num_running_ = 0;
  std::vector<CallOutcome> outcomes_;
};

}  // namespace lckv::bench
