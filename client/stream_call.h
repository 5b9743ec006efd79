// One Generate call on gRPC's threads, for commands that keep several in flight.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/connection.h"
#include "lckv/v1/inference.grpc.pb.h"

namespace lckv {

// What a call tells its owner, on one of gRPC's threads: events in order, then the end, once.
struct StreamListener {
  std::function<void(const v1::GenerateEvent&)> on_event;
  std::function<void(const absl::Status&)> on_end;
};

// Starts the call with the deadline of `options`; the call owns itself. The stub must live until
// on_end.
void start_stream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                  const ConnectionOptions& options, StreamListener listener);

// Counts calls in flight. Thread-safe; its waits end because every call has a deadline.
class FlightLimit {
 public:
  // No more than `limit` at once; 0 for any number.
  explicit FlightLimit(int limit) : limit_(limit) {}

  void enter();  // waits for room
  void leave();
  void wait_until_empty();

 private:
  const int limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int in_flight_ = 0;
};

}  // namespace lckv
