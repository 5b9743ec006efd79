// Session: the stream of one router: reads its frames, writes those for it from a bounded queue,
// and ends once, for the first reason that comes up.
//
// Owned by its call until the call is done, and by whoever else holds it; every method may be
// called from any thread. gRPC is never called with the lock held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "lckv/internal/v1/engine.pb.h"

namespace lckv {

struct SessionOptions {
  // A router that leaves so much unread is cut off. A step's frames are let in whole below the
  // bound.
  size_t max_queued_bytes = 256 << 20;
  size_t max_queued_frames = 4096;
  // So long without a frame from the router, or for one write, and it is taken for lost.
  absl::Duration silence_limit = absl::Seconds(10);
};

class Session final
    : public grpc::ServerBidiReactor<internal::v1::RouterFrame, internal::v1::WorkerFrame>,
      public std::enable_shared_from_this<Session> {
 public:
  // Frames come one at a time, in order; an error ends the session with it.
  using OnFrame = std::function<absl::Status(const std::shared_ptr<Session>&,
                                             const internal::v1::RouterFrame&)>;
  // Once, when the end begins: nothing that is sent later arrives.
  using OnEnd = std::function<void(const std::shared_ptr<Session>&)>;

  static std::shared_ptr<Session> open(uint64_t id, grpc::CallbackServerContext* call,
                                       const SessionOptions& options, OnFrame on_frame,
                                       OnEnd on_end);

  uint64_t id() const { return id_; }
  void read();  // starts to; once
  // The frame is the session's next. Dropped where the session ends; ends it where the queue is
  // full.
  void send(internal::v1::WorkerFrame frame);
  enum class Ending : uint8_t {
    kAfterFrames,  // behind all that was sent
    kAfterWrite,   // behind the write in progress
    kAtOnce,       // without a status
  };
  void end(absl::Status status, Ending ending = Ending::kAfterWrite);
  // Ends the session of a router that is silent or has stopped reading.
  void check(absl::Time now);
  absl::Time last_sent() const;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  Session(uint64_t id, grpc::CallbackServerContext* call, const SessionOptions& options,
          OnFrame on_frame, OnEnd on_end);
  // Starts the next write, or finishes the call, where either is due.
  void advance();

  const uint64_t id_;
  grpc::CallbackServerContext* const call_;  // valid until the call is finished
  const SessionOptions options_;
  const OnFrame on_frame_;
  const OnEnd on_end_;
  internal::v1::RouterFrame incoming_;  // of the read in progress
  internal::v1::WorkerFrame outgoing_;  // of the write in progress

  mutable std::mutex mutex_;       // guards everything below
  std::shared_ptr<Session> self_;  // the call's hold
  std::deque<internal::v1::WorkerFrame> queue_;
  size_t queued_bytes_ = 0;
  bool writing_ = false;
  bool cutting_off_ = false;  // call_ is in use: it must not be finished
  bool ending_ = false;
  bool finished_ = false;
  grpc::Status status_;
  absl::Time last_heard_;
  absl::Time write_began_;
  absl::Time last_sent_ = absl::InfinitePast();
};

}  // namespace lckv
