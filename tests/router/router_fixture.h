// A router in this process, and a client of it.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "lckv/v1/admin.grpc.pb.h"
#include "lckv/v1/inference.grpc.pb.h"
#include "lckv/v1/models.grpc.pb.h"
#include "router/router.h"
#include "router/text/stream_detokenizer.h"
#include "rpc/status_mapping.h"
#include "tests/router/fake_leader.h"

namespace lckv {

// Until a condition holds; the bound is for a hang, not for speed.
inline bool eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (absl::Now() < deadline) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return false;
}

struct Outcome {
  absl::Status status;
  std::vector<uint32_t> ids;
  std::string text;
  std::vector<v1::Finished> finished;
  std::vector<v1::Started> started;
  bool in_order = true;
};

class RouterTest : public ::testing::Test {
 protected:
  void start(const std::vector<std::string>& addresses) {
    options_.port = 0;
    options_.discovery.workers = addresses;
    auto router = Router::start(options_, [this](bool ready) { ready_ = ready; });
    ASSERT_TRUE(router.ok()) << router.status();
    router_ = *std::move(router);
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(router_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel_);
  }

  void start_ready(const std::vector<std::string>& addresses) {
    start(addresses);
    ASSERT_TRUE(eventually([&] { return count_state(ReplicaState::kReady) == addresses.size(); }));
  }

  size_t count_state(ReplicaState state) {
    const auto set = router_->fleet().snapshot();
    return static_cast<size_t>(
        std::count_if(set->replicas.begin(), set->replicas.end(),
                      [state](const ReplicaView& r) { return r.state == state; }));
  }

  // Of a counter or gauge, where its first label has the value.
  std::optional<double> metric(const std::string& name, const std::string& label) {
    for (const auto& family : router_->metrics().registry()->Collect()) {
      if (family.name != name) continue;
      for (const auto& series : family.metric) {
        if (series.label.at(0).value == label) return series.counter.value + series.gauge.value;
      }
    }
    return std::nullopt;
  }

  static v1::GenerateRequest request(uint32_t max_new_tokens) {
    v1::GenerateRequest request;
    request.set_text("Once upon a time");
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
    return request;
  }

  Outcome run(const v1::GenerateRequest& request, grpc::ClientContext& context) {
    Outcome outcome;
    auto reader = stub_->Generate(&context, request);
    v1::GenerateEvent event;
    uint32_t resumed = 0;
    for (const auto& choice : request.resume().choices()) {
      resumed += static_cast<uint32_t>(choice.ids_size());
    }
    while (reader->Read(&event)) {
      if (event.has_started()) outcome.started.push_back(event.started());
      if (event.has_finished()) outcome.finished.push_back(event.finished());
      if (request.num_choices() <= 1 && event.has_tokens()) {
        outcome.in_order =
            outcome.in_order && event.tokens().position() == resumed + outcome.ids.size();
      }
      for (const uint32_t id : event.tokens().ids()) outcome.ids.push_back(id);
      outcome.text += event.tokens().text();
    }
    outcome.status = to_absl_status(reader->Finish());
    return outcome;
  }

  Outcome run(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return run(request, context);
  }

  RouterOptions options_;
  std::atomic<bool> ready_ = false;
  std::unique_ptr<Router> router_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace lckv
