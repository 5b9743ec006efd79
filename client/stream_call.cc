#include "client/stream_call.h"

#include <utility>

#include "rpc/status_mapping.h"

namespace lckv {
namespace {

// Owns itself. Callbacks come one at a time, but on changing threads: the mutex shows that order to
// tools that do not see into gRPC.
class StreamCall final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  StreamCall(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
             const ConnectionOptions& options, StreamListener listener)
      : request_(request), listener_(std::move(listener)) {
    const std::lock_guard lock(mutex_);
    set_deadline(call_, options);
    stub.async()->Generate(&call_, &request_, this);
    StartRead(&event_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (!ok) return;
    listener_.on_event(event_);
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    std::function<void(const absl::Status&)> on_end;
    {
      const std::lock_guard lock(mutex_);
      on_end = std::move(listener_.on_end);
    }
    delete this;  // first, because the program may end once the owner knows
    on_end(to_absl_status(status));
  }

 private:
  std::mutex mutex_;
  grpc::ClientContext call_;
  const v1::GenerateRequest request_;
  StreamListener listener_;
  v1::GenerateEvent event_;
};

}  // namespace

void start_stream(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
                  const ConnectionOptions& options, StreamListener listener) {
  new StreamCall(stub, request, options, std::move(listener));
}

void FlightLimit::enter() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return limit_ == 0 || in_flight_ < limit_; });
  ++in_flight_;
}

void FlightLimit::leave() {
  const std::lock_guard lock(mutex_);
  --in_flight_;
  changed_.notify_all();
}

void FlightLimit::wait_until_empty() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return in_flight_ == 0; });
}

}  // namespace lckv
