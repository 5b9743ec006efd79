#include "tests/bench/stream_load.h"

#include <condition_variable>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/grpcpp.h"
#include "tests/bench/stream_number.h"

namespace lckv::bench {

struct StreamLoad::Shared {
  Shared(StreamLoadOptions given, const Emissions& emitted)
      : options(std::move(given)), emissions(emitted) {}

  const StreamLoadOptions options;
  const Emissions& emissions;
  std::atomic<bool> stopping = false;
  std::mutex mutex;  // guards the next two
  std::condition_variable ended;
  int num_running = 0;
};

// One after the other on one channel.
class StreamLoad::Stream final : public grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  Stream(Shared& shared, size_t number, const std::shared_ptr<grpc::Channel>& channel)
      : shared_(shared), number_(number), stub_(v1::Inference::NewStub(channel)) {
    request_.set_model(shared.options.model);
    for (const uint32_t id : prompt_of(number)) request_.mutable_token_ids()->add_ids(id);
    request_.mutable_sampling()->set_temperature(0);
    request_.mutable_stopping()->set_max_new_tokens(shared.options.num_tokens);
    begin();
  }

  void cancel() {
    const std::lock_guard lock(mutex_);
    if (call_ != nullptr) call_->TryCancel();
  }

  void take(Delivered& sum) {
    const std::lock_guard lock(mutex_);
    sum.tokens += delivered_.tokens;
    sum.events += delivered_.events;
    sum.streams += delivered_.streams;
    sum.failures += delivered_.failures;
    if (sum.first_failure.empty()) sum.first_failure = delivered_.first_failure;
    sum.latencies.insert(sum.latencies.end(), delivered_.latencies.begin(),
                         delivered_.latencies.end());
    delivered_ = {};
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (event_.has_tokens()) count(event_.tokens());
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    {
      const std::lock_guard lock(mutex_);
      if (status.ok()) {
        ++delivered_.streams;
      } else if (!shared_.stopping) {
        ++delivered_.failures;
        delivered_.first_failure = status.error_message();
      }
    }
    if (!shared_.stopping) {
      begin();
      return;
    }
    const std::lock_guard lock(shared_.mutex);
    --shared_.num_running;
    shared_.ended.notify_all();
  }

 private:
  void begin() {
    {
      const std::lock_guard lock(mutex_);
      call_ = std::make_unique<grpc::ClientContext>();
      stub_->async()->Generate(call_.get(), &request_, this);
    }
    StartRead(&event_);
    StartCall();
  }

  void count(const v1::Tokens& tokens) {
    const std::lock_guard lock(mutex_);
    ++delivered_.events;
    for (int i = 0; i < tokens.ids_size(); ++i) {
      ++delivered_.tokens;
      delivered_.latencies.push_back(shared_.emissions.since(number_, tokens.position() + i));
    }
  }

  Shared& shared_;
  const size_t number_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  v1::GenerateRequest request_;
  v1::GenerateEvent event_;
  std::mutex mutex_;  // guards the next two
  std::unique_ptr<grpc::ClientContext> call_;
  Delivered delivered_;
};

StreamLoad::StreamLoad(const StreamLoadOptions& options, const Emissions& emissions)
    : shared_(std::make_unique<Shared>(options, emissions)) {
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < options.num_channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("lckv.bench.channel", i);  // else equal channels share one connection
    channels.push_back(
        grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments));
  }
  shared_->num_running = options.num_streams;
  for (int i = 0; i < options.num_streams; ++i) {
    streams_.push_back(std::make_unique<Stream>(*shared_, i, channels[i % channels.size()]));
  }
}

StreamLoad::~StreamLoad() {
  shared_->stopping = true;
  for (const auto& stream : streams_) stream->cancel();
  std::unique_lock lock(shared_->mutex);
  shared_->ended.wait(lock, [this] { return shared_->num_running == 0; });
}

Delivered StreamLoad::take() {
  Delivered sum;
  for (const auto& stream : streams_) stream->take(sum);
  return sum;
}

}  // namespace lckv::bench
