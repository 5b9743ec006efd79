// One connection of a session link: a bidirectional stream to a replica's leader.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "lckv/internal/v1/engine.grpc.pb.h"

namespace lckv {

// Ownership: keeps itself alive from start() until gRPC is done with it. Thread-safe. A hold on the
// stream, given back once reading has ended and no write is under way, lets writes be started from
// any thread. gRPC is never called while the lock is held.
class Session final
    : public grpc::ClientBidiReactor<internal::v1::RouterFrame, internal::v1::WorkerFrame>,
      public std::enable_shared_from_this<Session> {
 public:
  // More frames than a session can legitimately have waiting; beyond it the stream is given up.
  static constexpr size_t kMaxQueuedFrames = 65536;

  struct Handlers {
    std::function<void(const internal::v1::WorkerFrame&)> on_frame;  // in order, one at a time
    std::function<void(const grpc::Status&)> on_end;                 // once, last
  };

  // Handlers are set before start() and may hold the owner of this session: they go when the stream
  // has ended.
  void set_handlers(Handlers handlers) { handlers_ = std::move(handlers); }
  // Sends what was queued before.
  void start(internal::v1::Engine::Stub& stub);
  // Appends a frame; flush() sends, once there is a stream. Frames after the end are dropped.
  void enqueue(internal::v1::RouterFrame frame);
  // Not to be called with a lock held that handlers take.
  void flush();
  void cancel() { call_.TryCancel(); }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  Handlers handlers_;
  grpc::ClientContext call_;
  internal::v1::WorkerFrame incoming_;  // the reading callback's own

  std::mutex mutex_;  // guards what follows
  std::deque<internal::v1::RouterFrame> queue_;
  internal::v1::RouterFrame outgoing_;  // the write's own while writing_
  bool started_ = false;                // there is a stream to write to
  bool writing_ = false;
  bool closed_ = false;
  bool overflowed_ = false;
  std::shared_ptr<Session> self_;
};

}  // namespace lckv
