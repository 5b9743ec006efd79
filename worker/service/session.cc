#include "worker/service/session.h"

#include <utility>

#include "absl/time/clock.h"
#include "rpc/status_mapping.h"

namespace lckv {

std::shared_ptr<Session> Session::open(uint64_t id, grpc::CallbackServerContext* call,
                                       const SessionOptions& options, OnFrame on_frame,
                                       OnEnd on_end) {
  std::shared_ptr<Session> session(
      new Session(id, call, options, std::move(on_frame), std::move(on_end)));
  const std::lock_guard lock(session->mutex_);
  session->self_ = session;
  return session;
}

Session::Session(uint64_t id, grpc::CallbackServerContext* call, const SessionOptions& options,
                 OnFrame on_frame, OnEnd on_end)
    : id_(id),
      call_(call),
      options_(options),
      on_frame_(std::move(on_frame)),
      on_end_(std::move(on_end)),
      last_heard_(absl::Now()) {}

void Session::read() { StartRead(&incoming_); }

void Session::send(internal::v1::WorkerFrame frame) {
  bool full = false;
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return;
    full =
        queued_bytes_ >= options_.max_queued_bytes || queue_.size() >= options_.max_queued_frames;
    if (!full) {
      queued_bytes_ += frame.ByteSizeLong();
      queue_.push_back(std::move(frame));
      last_sent_ = absl::Now();
    }
  }
  if (full) {
    end(absl::ResourceExhaustedError("the router reads too slowly"), Ending::kAtOnce);
  } else {
    advance();
  }
}

void Session::end(absl::Status status, Ending ending) {
  bool cut_off = false;
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return;
    ending_ = true;
    status_ = to_grpc_status(status);
    if (ending != Ending::kAfterFrames) queue_.clear();
    cut_off = ending == Ending::kAtOnce && writing_;
    cutting_off_ = cut_off;
  }
  on_end_(shared_from_this());
  if (cut_off) {
    call_->TryCancel();
    const std::lock_guard lock(mutex_);
    cutting_off_ = false;
  }
  advance();
}

void Session::check(absl::Time now) {
  absl::Status status;
  {
    const std::lock_guard lock(mutex_);
    if (now - last_heard_ > options_.silence_limit) {
      status = absl::DeadlineExceededError("nothing was heard from the router");
    } else if (writing_ && now - write_began_ > options_.silence_limit) {
      status = absl::ResourceExhaustedError("the router has stopped reading");
    }
  }
  if (!status.ok()) end(std::move(status), Ending::kAtOnce);
}

absl::Time Session::last_sent() const {
  const std::lock_guard lock(mutex_);
  return last_sent_;
}

void Session::advance() {
  bool finish = false;
  {
    const std::lock_guard lock(mutex_);
    if (finished_ || writing_ || cutting_off_) return;
    if (queue_.empty()) {
      if (!ending_) return;
      finished_ = finish = true;
    } else {
      outgoing_ = std::move(queue_.front());
      queue_.pop_front();
      queued_bytes_ -= outgoing_.ByteSizeLong();
      writing_ = true;
      write_began_ = absl::Now();
    }
  }
  if (finish) {
    Finish(status_);
  } else {
    StartWrite(&outgoing_);
  }
}

void Session::OnReadDone(bool ok) {
  if (!ok) {
    end(absl::OkStatus());
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    if (ending_) return;
    last_heard_ = absl::Now();
  }
  if (absl::Status status = on_frame_(shared_from_this(), incoming_); !status.ok()) {
    end(std::move(status));
    return;
  }
  StartRead(&incoming_);
}

void Session::OnWriteDone(bool ok) {
  {
    const std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) queue_.clear();
  }
  if (!ok) end(absl::UnavailableError("the router is gone"));
  advance();
}

void Session::OnCancel() { end(absl::CancelledError("the router went away")); }

void Session::OnDone() {
  std::shared_ptr<Session> self;  // released outside the lock: this may be the last hold
  const std::lock_guard lock(mutex_);
  self = std::move(self_);
}

}  // namespace lckv
