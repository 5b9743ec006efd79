// A leader that does what a test scripts, over real sockets.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "grpcpp/server.h"
#include "lckv/internal/v1/engine.grpc.pb.h"

namespace lckv {

// One session as the script sees it. Thread-safe.
class FakeSession {
 public:
  using Stream = grpc::ServerReaderWriter<internal::v1::WorkerFrame, internal::v1::RouterFrame>;

  explicit FakeSession(Stream* stream) : stream_(stream) {}
  // The load of every frame: much credit, and what was submitted counted as taken.
  void write(internal::v1::WorkerFrame frame);
  void start(uint64_t handle);
  void token(uint64_t handle, uint32_t token);
  void finish(uint64_t handle, internal::v1::Finished::Reason reason);
  bool cancelled(uint64_t handle);
  bool paused(uint64_t handle);
  void set_credit(uint32_t credit) { credit_ = credit; }

 private:
  friend class FakeLeader;
  void note(const internal::v1::RouterFrame& frame);

  std::mutex mutex_;
  Stream* stream_;  // null once the session has ended
  std::atomic<uint32_t> credit_ = 1000;
  uint64_t num_taken_ = 0;
  uint64_t step_ = 0;
  std::vector<uint64_t> cancelled_;
  std::vector<uint64_t> paused_;
};

using SubmitScript = std::function<void(std::shared_ptr<FakeSession>, const internal::v1::Submit&)>;

class FakeLeader final : public internal::v1::Engine::Service {
 public:
  // Runs `script` on a thread of its own for each submit. `port` 0: any.
  FakeLeader(internal::v1::Hello hello, SubmitScript script, int port = 0);
  ~FakeLeader() override;

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }
  // Says Hello only once allowed; true from the start.
  void allow_hello(bool allowed) { hello_allowed_ = allowed; }
  void set_credit(uint32_t credit) { initial_credit_ = credit; }
  // Ends all sessions and stops listening.
  void kill();
  bool killed() const { return killed_; }
  // Opened so far.
  int num_sessions() const { return num_sessions_; }
  int num_submits() const { return num_submits_; }
  std::vector<internal::v1::Submit> submits();

  grpc::Status Session(grpc::ServerContext* context, FakeSession::Stream* stream) override;

 private:
  const internal::v1::Hello hello_;
  const SubmitScript script_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<bool> hello_allowed_ = true;
  std::atomic<bool> killed_ = false;
  std::atomic<uint32_t> initial_credit_ = 1000;
  std::atomic<int> num_submits_ = 0;
  std::atomic<int> num_sessions_ = 0;
  std::mutex mutex_;
  std::vector<std::thread> threads_;
  std::vector<internal::v1::Submit> submits_;
};

// Of the demo model, with its tokenizer.
internal::v1::Hello demo_hello(const std::string& replica_id = "replica-1");
std::string read_file(const std::string& path);

// Generates max_new_tokens tokens, ids counting up from 300, then finishes.
void count_up(const std::shared_ptr<FakeSession>& session, const internal::v1::Submit& submit);

}  // namespace lckv
