#include "tests/bench/open_load.h"

#include <utility>

#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"

namespace lckv::bench {
namespace {

constexpr int kNumChannels = 4;

}  // namespace

// Owns itself.
class OpenLoad::Call final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  Call(OpenLoad& load, v1::Inference::Stub& stub, int kind, const v1::GenerateRequest& request,
       absl::Duration deadline)
      : load_(load), request_(request) {
    outcome_.kind = kind;
    call_.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    stub.async()->Generate(&call_, &request_, this);
    StartRead(&event_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (event_.has_tokens()) {
      const absl::Time now = absl::Now();
      if (last_ == absl::InfinitePast()) {
        outcome_.first_token = now - sent_;
      } else {
        outcome_.gaps.push_back(now - last_);
      }
      last_ = now;
    }
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    outcome_.code = status.error_code();
    outcome_.ended = absl::Now();
    outcome_.total = outcome_.ended - sent_;
    outcome_.says_when_to_retry =
        status.error_details().find("google.rpc.RetryInfo") != std::string::npos &&
        call_.GetServerTrailingMetadata().count("grpc-retry-pushback-ms") > 0;
    OpenLoad& load = load_;
    CallOutcome outcome = std::move(outcome_);
    delete this;
    load.ended(std::move(outcome));
  }

 private:
  OpenLoad& load_;
  const v1::GenerateRequest request_;
  const absl::Time sent_ = absl::Now();
  grpc::ClientContext call_;
  v1::GenerateEvent event_;
  absl::Time last_ = absl::InfinitePast();
  CallOutcome outcome_;
};

OpenLoad::OpenLoad(const std::string& address) {
  for (int i = 0; i < kNumChannels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("lckv.bench.channel", i);  // else equal channels share one connection
    stubs_.push_back(v1::Inference::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments)));
  }
}

OpenLoad::~OpenLoad() { finish(); }

void OpenLoad::start(int kind, const v1::GenerateRequest& request, absl::Duration deadline) {
  {
    const std::lock_guard lock(mutex_);
    ++num_running_;
  }
  new Call(*this, *stubs_[next_stub_++ % stubs_.size()], kind, request, deadline);
}

void OpenLoad::pace(double rate, absl::Duration duration, const std::function<void(int)>& begin) {
  const absl::Time start = absl::Now();
  const auto count = static_cast<int>(rate * absl::ToDoubleSeconds(duration));
  for (int i = 0; i < count; ++i) {
    absl::SleepFor(start + absl::Seconds(i / rate) - absl::Now());
    begin(i);
  }
}

std::vector<CallOutcome> OpenLoad::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return num_running_ == 0; });
  return std::exchange(outcomes_, {});
}

void OpenLoad::ended(CallOutcome outcome) {
  const std::lock_guard lock(mutex_);
  outcomes_.push_back(std::move(outcome));
  --num_running_;
  changed_.notify_all();
}

}  // namespace lckv::bench
