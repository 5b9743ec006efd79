#include "worker/group/rank_stream.h"

#include <utility>

#include "rpc/status_mapping.h"

namespace lckv {
namespace {

// Ranks that meet in collectives are a few steps apart at most, and idle beats are rare.
constexpr size_t kMaxQueuedFrames = 1024;

}  // namespace

std::shared_ptr<RankStream> RankStream::open(OnFrame on_frame, OnEnd on_end) {
  std::shared_ptr<RankStream> stream(new RankStream(std::move(on_frame), std::move(on_end)));
  const std::lock_guard lock(stream->mutex_);
  stream->self_ = stream;
  return stream;
}

RankStream::RankStream(OnFrame on_frame, OnEnd on_end)
    : on_frame_(std::move(on_frame)), on_end_(std::move(on_end)) {}

void RankStream::read() { StartRead(&incoming_); }

absl::Status RankStream::send(Frame frame) {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return absl::OkStatus();
    if (queue_.size() >= kMaxQueuedFrames) {
      return absl::ResourceExhaustedError("the rank does not read its plans");
    }
    queue_.push_back(std::move(frame));
  }
  advance();
  return absl::OkStatus();
}

void RankStream::end(const absl::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return;
    ending_ = true;
    status_ = to_grpc_status(status);
  }
  advance();
}

bool RankStream::is_done() const {
  const std::lock_guard lock(mutex_);
  return done_;
}

void RankStream::advance() {
  bool finish = false;
  {
    const std::lock_guard lock(mutex_);
    if (finished_ || writing_) return;
    if (!queue_.empty()) {
      outgoing_ = std::move(queue_.front());
      queue_.pop_front();
      writing_ = true;
    } else if (ending_) {
      finished_ = finish = true;
    } else {
      return;
    }
  }
  if (finish) {
    Finish(status_);
  } else {
    StartWrite(outgoing_.get());
  }
}

void RankStream::lose() {
  {
    const std::lock_guard lock(mutex_);
    if (lost_) return;
    lost_ = true;
    queue_.clear();
  }
  on_end_(shared_from_this());
  end(absl::CancelledError("the rank went away"));
}

void RankStream::OnReadDone(bool ok) {
  if (!ok) {
    lose();
    return;
  }
  if (absl::Status status = on_frame_(shared_from_this(), incoming_); !status.ok()) {
    end(status);
    return;
  }
  StartRead(&incoming_);
}

void RankStream::OnWriteDone(bool ok) {
  {
    const std::lock_guard lock(mutex_);
    writing_ = false;
  }
  if (!ok) lose();
  advance();
}

void RankStream::OnCancel() { lose(); }

void RankStream::OnDone() {
  std::shared_ptr<RankStream> self;  // released outside the lock: this may be the last hold
  const std::lock_guard lock(mutex_);
  done_ = true;
  self = std::move(self_);
}

}  // namespace lckv
