#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/grpcpp.h"
#include "kernels/check.h"
#include "lckv/v1/inference.grpc.pb.h"
#include "tests/bench/bare_relay.h"
#include "tests/bench/stream_number.h"

namespace lckv::bench {
namespace {

// One call: writes what is due, one event after the other.
class PacedStream final : public grpc::ServerWriteReactor<v1::GenerateEvent> {
 public:
  PacedStream(size_t number, uint32_t num_tokens, Emissions& emissions,
              std::function<void(PacedStream*)> done)
      : number_(number), num_tokens_(num_tokens), emissions_(emissions), done_(std::move(done)) {
    if (num_tokens > 0) return;
    ended_ = true;
    Finish(grpc::Status::OK);
  }

  size_t number() const { return number_; }

  // A token is due.
  void tick() {
    const std::lock_guard lock(mutex_);
    if (ended_ || emitted_ == num_tokens_) return;
    emissions_.emitted(number_, emitted_);
    ++emitted_;
    if (!writing_) write();
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok || ended_) return;
    if (written_ < emitted_) {
      write();
    } else if (written_ == num_tokens_) {
      ended_ = true;
      Finish(grpc::Status::OK);
    }
  }
  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    done_(this);
    delete this;
  }

 private:
  void write() {
    v1::Tokens& tokens = *event_.mutable_tokens();
    tokens.Clear();
    tokens.set_position(written_);
    for (; written_ < emitted_; ++written_) tokens.add_ids(written_);
    tokens.set_text("token");
    writing_ = true;
    StartWrite(&event_);
  }

  const size_t number_;
  const uint32_t num_tokens_;
  Emissions& emissions_;
  const std::function<void(PacedStream*)> done_;
  std::mutex mutex_;  // guards everything below
  v1::GenerateEvent event_;
  uint32_t emitted_ = 0;
  uint32_t written_ = 0;
  bool writing_ = false;
  bool ended_ = false;
};

}  // namespace

class PacedSource::Service final : public v1::Inference::CallbackService {
 public:
  Service(int num_groups, absl::Duration step, Emissions& emissions)
      : emissions_(emissions), groups_(num_groups), step_(step), thread_([this] { pace(); }) {}
  ~Service() override {
    stopping_ = true;
    thread_.join();
  }

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(
      grpc::CallbackServerContext*, const v1::GenerateRequest* request) override {
    const std::lock_guard lock(mutex_);
    auto* const stream =
        new PacedStream(stream_of(request->token_ids().ids()), request->stopping().max_new_tokens(),
                        emissions_, [this](PacedStream* ended) {
                          const std::lock_guard lock(mutex_);
                          group_of(*ended).erase(ended);
                          --num_streams_;
                        });
    group_of(*stream).insert(stream);
    ++num_streams_;
    return stream;
  }

 private:
  std::unordered_set<PacedStream*>& group_of(const PacedStream& stream) {
    return groups_[stream.number() % groups_.size()];
  }

  // Groups take turns, evenly over a step.
  void pace() {
    absl::Time next = absl::Now();
    for (size_t turn = 0; !stopping_; ++turn) {
      // Without streams it is to cost whoever else is measured nothing.
      next = num_streams_ > 0 ? next + step_ / static_cast<int64_t>(groups_.size())
                              : absl::Now() + step_;
      absl::SleepFor(next - absl::Now());
      const std::lock_guard lock(mutex_);
      for (PacedStream* const stream : groups_[turn % groups_.size()]) stream->tick();
    }
  }

  Emissions& emissions_;
  std::mutex mutex_;  // guards the next
  std::vector<std::unordered_set<PacedStream*>> groups_;
  const absl::Duration step_;
  std::atomic<size_t> num_streams_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

PacedSource::PacedSource(int num_groups, absl::Duration step, Emissions& emissions)
    : service_(std::make_unique<Service>(num_groups, step, emissions)) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  LCKV_CHECK(server_ != nullptr);
}

PacedSource::~PacedSource() { server_->Shutdown(std::chrono::system_clock::now()); }

std::string PacedSource::address() const { return absl::StrCat("127.0.0.1:", port_); }

}  // namespace lckv::bench
