// EngineService over a real socket: the test plays the engine's side, and routers over gRPC.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "rpc/server_options.h"
#include "worker/service/engine_service.h"

namespace lckv {

inline constexpr absl::Duration kPatience = absl::Seconds(20);

inline bool eventually(const std::function<bool()>& condition) {
  for (const absl::Time end = absl::Now() + kPatience; absl::Now() < end;) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return condition();
}

class Mailbox {
 public:
  absl::Status post(EngineCommand command) {
    const std::lock_guard lock(mutex_);
    if (full_) return absl::ResourceExhaustedError("the mailbox is full");
    commands_.push_back(std::move(command));
    return absl::OkStatus();
  }
  void set_full(bool full) {
    const std::lock_guard lock(mutex_);
    full_ = full;
  }
  uint64_t size() {
    const std::lock_guard lock(mutex_);
    return commands_.size();
  }
  std::vector<SubmitCommand> submits() { return all<SubmitCommand>(); }
  std::vector<uint64_t> cancelled() { return ids<CancelCommand>(); }
  std::vector<uint64_t> paused() { return ids<PauseCommand>(); }
  std::vector<uint64_t> unpaused() { return ids<UnpauseCommand>(); }

 private:
  template <typename Command>
  std::vector<Command> all() {
    const std::lock_guard lock(mutex_);
    std::vector<Command> found;
    for (const EngineCommand& command : commands_) {
      if (const auto* one = std::get_if<Command>(&command)) found.push_back(*one);
    }
    return found;
  }
  template <typename Command>
  std::vector<uint64_t> ids() {
    std::vector<uint64_t> found;
    for (const Command& command : all<Command>()) found.push_back(raw(command.sequence));
    return found;
  }

  std::mutex mutex_;
  std::vector<EngineCommand> commands_;
  bool full_ = false;
};

class ServiceTest : public ::testing::Test {
 protected:
  class Router {
   public:
    explicit Router(internal::v1::Engine::Stub& stub, bool opens = true,
                    const std::string& id = "") {
      call_.set_wait_for_ready(true);
      call_.set_deadline(absl::ToChronoTime(absl::Now() + 3 * kPatience));
      stream_ = stub.Session(&call_);
      internal::v1::RouterFrame frame;
      frame.mutable_open()->set_router_id(id);
      if (opens) stream_->Write(frame);
    }
    ~Router() {
      if (stream_ != nullptr) end();
    }

    bool write(const internal::v1::RouterFrame& frame) { return stream_->Write(frame); }
    void submit(uint64_t handle, uint32_t first_token = 5) {
      internal::v1::RouterFrame frame;
      internal::v1::Submit& submit = *frame.mutable_submit();
      submit.set_handle(handle);
      submit.add_prompt(first_token);
      submit.mutable_sampling()->set_top_p(1);
      submit.mutable_sampling()->set_repetition_penalty(1);
      stream_->Write(frame);
    }
    void cancel(uint64_t handle) {
      internal::v1::RouterFrame frame;
      frame.mutable_cancel()->set_handle(handle);
      stream_->Write(frame);
    }
    void pause(uint64_t handle, bool pause) {
      internal::v1::RouterFrame frame;
      if (pause) {
        frame.mutable_pause()->set_handle(handle);
      } else {
        frame.mutable_continue_()->set_handle(handle);
      }
      stream_->Write(frame);
    }
    // The next frame; an empty one where the session has ended.
    internal::v1::WorkerFrame next() {
      internal::v1::WorkerFrame frame;
      ended_ = !stream_->Read(&frame);
      return frame;
    }
    bool ended() const { return ended_; }
    grpc::Status end() {
      call_.TryCancel();
      return finish();
    }
    // For sessions that the worker ends.
    grpc::Status finish() {
      internal::v1::WorkerFrame frame;
      while (stream_->Read(&frame)) {
      }
      grpc::Status status = stream_->Finish();
      stream_ = nullptr;
      return status;
    }

   private:
    grpc::ClientContext call_;
    std::unique_ptr<grpc::ClientReaderWriter<internal::v1::RouterFrame, internal::v1::WorkerFrame>>
        stream_;
    bool ended_ = false;
  };

  void start(ServiceOptions options = {}) {
    service_ = std::make_unique<EngineService>(options, &metrics_);
    grpc::ServerBuilder builder;
    configure_internal_server(builder);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    stub_ = internal::v1::Engine::NewStub(grpc::CreateCustomChannel(
        absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(),
        internal_channel_arguments()));
  }
  void serve() {
    internal::v1::Hello hello;
    hello.set_model("m");
    service_->serve(std::move(hello), {.vocabulary = 100, .max_context = 16, .max_logprobs = 5},
                    [this](EngineCommand command) { return mailbox_.post(std::move(command)); });
  }
  void TearDown() override {
    service_->close();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    EXPECT_EQ(service_->num_sequences(), 0U);
  }

  // A turn of the loop that took all commands.
  StepReport turn(std::vector<SequenceEvent> events = {}) {
    StepReport report{.step = step_, .ran_step = !events.empty(), .events = std::move(events)};
    if (report.ran_step) report.step = ++step_;
    report.num_commands = mailbox_.size();
    for (const SubmitCommand& submit : mailbox_.submits()) report.last_submit = submit.sequence;
    return report;
  }
  void report(std::vector<SequenceEvent> events = {}) { service_->report(turn(std::move(events))); }
  SequenceId sequence(size_t submit) { return mailbox_.submits().at(submit).sequence; }
  // Reads beats away.
  static internal::v1::WorkerFrame next_but_beats(Router& router) {
    for (;;) {
      internal::v1::WorkerFrame frame = router.next();
      const bool is_beat = frame.frame_case() == internal::v1::WorkerFrame::FRAME_NOT_SET;
      if (router.ended() || !is_beat) return frame;
    }
  }

  WorkerMetrics metrics_{std::make_shared<prometheus::Registry>(), "m", "0"};
  Mailbox mailbox_;
  std::unique_ptr<EngineService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<internal::v1::Engine::Stub> stub_;
  uint64_t step_ = 0;
};

inline SequenceEvent token_of(SequenceId id, int32_t token) {
  return {.sequence = id, .token = token};
}
inline SequenceEvent end_of(SequenceId id) {
  return {.kind = SequenceEvent::Kind::kFinished, .sequence = id};
}

}  // namespace lckv
