#include "router/fleet/session.h"

#include <utility>

namespace lckv {

void Session::start(internal::v1::Engine::Stub& stub) {
  {
    std::lock_guard lock(mutex_);
    self_ = shared_from_this();
  }
  stub.async()->Session(&call_, this);
  AddHold();
  StartRead(&incoming_);
  StartCall();
  {
    std::lock_guard lock(mutex_);
    started_ = true;
  }
  flush();
}

void Session::enqueue(internal::v1::RouterFrame frame) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  if (queue_.size() >= kMaxQueuedFrames) {
    overflowed_ = true;
    return;
  }
  queue_.push_back(std::move(frame));
}

void Session::flush() {
  {
    std::unique_lock lock(mutex_);
    if (overflowed_) {
      lock.unlock();
      cancel();
      return;
    }
    if (!started_ || writing_ || closed_ || queue_.empty()) return;
    outgoing_ = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
  }
  StartWrite(&outgoing_);
}

void Session::OnReadDone(bool ok) {
  if (ok) {
    handlers_.on_frame(incoming_);
    incoming_.Clear();
    StartRead(&incoming_);
    return;
  }
  bool release = false;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    queue_.clear();
    release = !writing_;
  }
  if (release) RemoveHold();
}

void Session::OnWriteDone(bool /*ok*/) {
  bool release = false;
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    release = closed_;
  }
  if (release) {
    RemoveHold();
  } else {
    flush();
  }
}

void Session::OnDone(const grpc::Status& status) {
  std::shared_ptr<Session> self;
  {
    std::lock_guard lock(mutex_);
    self = std::move(self_);
  }
  handlers_.on_end(status);
}

}  // namespace lckv
