// RankStream: one rank's stream at the leader: reads its frames, writes those for it from a bounded
// queue, and ends once, for the first reason that comes up.
//
// Owned by its call until the call is done, and by whoever else holds it; every method may be
// called from any thread. gRPC is never called with the lock held.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "grpcpp/support/server_callback.h"
#include "lckv/internal/v1/rank.grpc.pb.h"

namespace lckv {

class RankStream final
    : public grpc::ServerBidiReactor<internal::v1::RankFrame, internal::v1::LeaderFrame>,
      public std::enable_shared_from_this<RankStream> {
 public:
  using Frame = std::shared_ptr<const internal::v1::LeaderFrame>;
  // Frames come one at a time, in order; an error ends the stream with it.
  using OnFrame = std::function<absl::Status(const std::shared_ptr<RankStream>&,
                                             const internal::v1::RankFrame&)>;
  // Once, when nothing more will come from the rank.
  using OnEnd = std::function<void(const std::shared_ptr<RankStream>&)>;

  static std::shared_ptr<RankStream> open(OnFrame on_frame, OnEnd on_end);

  void read();  // starts to; once
  // Dropped where the stream ends; ResourceExhausted where the rank has left too much unread.
  absl::Status send(Frame frame);
  // Ends the stream behind what was sent.
  void end(const absl::Status& status);
  // The call is over: what was sent last has left this process.
  bool is_done() const;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  RankStream(OnFrame on_frame, OnEnd on_end);
  void lose();
  // Starts the next write, or finishes the call, where either is due.
  void advance();

  const OnFrame on_frame_;
  const OnEnd on_end_;
  internal::v1::RankFrame incoming_;  // of the read in progress
  Frame outgoing_;                    // of the write in progress

  mutable std::mutex mutex_;          // guards everything below
  std::shared_ptr<RankStream> self_;  // the call's hold
  std::deque<Frame> queue_;
  bool writing_ = false;
  bool ending_ = false;
  bool lost_ = false;
  bool finished_ = false;
  bool done_ = false;
  grpc::Status status_;
};

}  // namespace lckv
