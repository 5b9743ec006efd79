#include "worker/service/engine_service.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

using internal::v1::Hello;
using internal::v1::RouterFrame;
using internal::v1::Submit;
using internal::v1::WorkerFrame;

}  // namespace

EngineService::EngineService(const ServiceOptions& options, WorkerMetrics* metrics, RequestLog* log)
    : options_(options), metrics_(metrics), log_(log) {}

grpc::ServerBidiReactor<RouterFrame, WorkerFrame>* EngineService::Session(
    grpc::CallbackServerContext* call) {
  std::shared_ptr<lckv::Session> session;
  absl::Status refusal;
  {
    const std::lock_guard lock(mutex_);
    session = lckv::Session::open(
        ++last_session_, call, options_.session,
        [this](const std::shared_ptr<lckv::Session>& from, const RouterFrame& frame) {
          return take(from, frame);
        },
        [this](const std::shared_ptr<lckv::Session>& ended) { forget_session(ended->id()); });
    if (closed_) {
      refusal = absl::UnavailableError("the worker shuts down");
    } else if (links_.size() >= static_cast<size_t>(options_.max_sessions)) {
      refusal = absl::ResourceExhaustedError(
          absl::StrCat("this worker has ", options_.max_sessions, " sessions already"));
    } else {
      links_[session->id()].session = session;
    }
  }
  if (refusal.ok()) {
    session->read();
  } else {
    session->end(std::move(refusal));
  }
  return session.get();
}

absl::Status EngineService::take(const std::shared_ptr<lckv::Session>& session,
                                 const RouterFrame& frame) {
  bool loaded = false;
  {
    const std::lock_guard lock(mutex_);
    const auto link = links_.find(session->id());
    if (link == links_.end()) return absl::OkStatus();
    std::string& router = link->second.router;
    if (router.empty() != frame.has_open()) {
      return absl::InvalidArgumentError("the first frame, and no other, is Open");
    }
    if (frame.has_open()) {
      // One that does not say who it is is one of its own.
      router = absl::StrCat("router ", frame.open().router_id().empty()
                                           ? absl::StrCat("of session ", session->id())
                                           : frame.open().router_id());
      ++routers_[router];
    }
    loaded = hello_ != nullptr;
  }
  switch (frame.frame_case()) {
    case RouterFrame::kOpen:
      if (loaded) greet({session});
      break;
    case RouterFrame::kSubmit:
      return submit(session, frame.submit());
    case RouterFrame::kCancel:
      cancel(session->id(), frame.cancel().handle());
      break;
    case RouterFrame::kPause:
      pause(session->id(), frame.pause().handle(), true);
      break;
    case RouterFrame::kContinue:
      pause(session->id(), frame.continue_().handle(), false);
      break;
    case RouterFrame::kBeat:
    case RouterFrame::FRAME_NOT_SET:
      break;
  }
  return absl::OkStatus();
}

void EngineService::serve(Hello hello, SubmitLimits limits, Post post) {
  std::vector<std::shared_ptr<lckv::Session>> waiting;
  {
    const std::lock_guard lock(mutex_);
    hello_ = std::make_shared<const Hello>(std::move(hello));
    limits_ = std::make_shared<const SubmitLimits>(std::move(limits));
    post_ = std::move(post);
    for (const auto& [id, link] : links_) {
      if (!link.router.empty()) waiting.push_back(link.session);
    }
  }
  greet(waiting);
}

void EngineService::greet(const std::vector<std::shared_ptr<lckv::Session>>& sessions) {
  for (const auto& session : sessions) {
    WorkerFrame frame;
    {
      const std::lock_guard lock(mutex_);
      const auto it = links_.find(session->id());
      if (it == links_.end()) continue;
      *frame.mutable_hello() = *hello_;
      *frame.mutable_load() = load_of(it->second);
    }
    session->send(std::move(frame));
    WorkerFrame news;
    {
      const std::lock_guard lock(mutex_);
      const auto it = links_.find(session->id());
      if (it == links_.end()) continue;
      it->second.greeted = true;
      if (!it->second.missed_news) continue;
      *news.mutable_load() = load_of(it->second);
    }
    session->send(std::move(news));
  }
}

absl::Status EngineService::submit(const std::shared_ptr<lckv::Session>& session,
                                   const Submit& submit) {
  std::shared_ptr<const SubmitLimits> limits;
  absl::Status refusal;
  {
    const std::lock_guard lock(mutex_);
    const auto it = links_.find(session->id());
    if (it == links_.end()) return absl::OkStatus();
    Link& link = it->second;
    ++link.num_read;
    if (hello_ == nullptr) return absl::FailedPreconditionError("a submit came before Hello");
    if (link.handles.contains(submit.handle())) {
      return absl::InvalidArgumentError(absl::StrCat("handle ", submit.handle(), " is in use"));
    }
    limits = limits_;
    if (draining_) refusal = absl::UnavailableError("the worker drains");
  }
  auto spec = check_submit(submit, *limits);
  if (refusal.ok()) refusal = spec.status();
  if (!refusal.ok()) {
    refuse(session, submit.handle(), refusal);
    return absl::OkStatus();
  }
  SubmitCommand command{.spec = *spec};
  {
    // Known before it is posted, so that its first event finds it.
    const std::lock_guard lock(mutex_);
    const auto it = links_.find(session->id());
    if (it == links_.end()) return absl::OkStatus();
    command.sequence = SequenceId{++last_sequence_};
    it->second.handles.emplace(submit.handle(), command.sequence);
    Sequence& sequence = sequences_[command.sequence];
    sequence.session = session->id();
    sequence.handle = submit.handle();
    sequence.spec = *spec;
    sequence.times.arrived = absl::Now();
    uncounted_.insert(command.sequence);
    ++num_posted_;
  }
  const SequenceId id = command.sequence;
  if (absl::Status status = post_(std::move(command)); !status.ok()) {
    {
      const std::lock_guard lock(mutex_);
      --num_posted_;
      uncounted_.erase(id);
      erase(id);
    }
    refuse(session, submit.handle(), status);
    return absl::OkStatus();
  }
  // A session that ended between the two locks above posted its cancel before the submit, which
  // would then live on: nobody is left to receive it.
  bool orphan = false;
  {
    const std::lock_guard lock(mutex_);
    orphan = !sequences_.contains(id) && !links_.contains(session->id());
  }
  if (orphan) post_cancels({id});
  return absl::OkStatus();
}

void EngineService::refuse(const std::shared_ptr<lckv::Session>& session, uint64_t handle,
                           const absl::Status& status) {
  StepFrames frames(0);
  frames.refused(handle, status);
  std::vector<WorkerFrame> to_send = frames.take();
  {
    const std::lock_guard lock(mutex_);
    const auto it = links_.find(session->id());
    if (it == links_.end()) return;
    ++it->second.num_counted;
    for (WorkerFrame& frame : to_send) *frame.mutable_load() = load_of(it->second);
  }
  for (WorkerFrame& frame : to_send) session->send(std::move(frame));
}

void EngineService::cancel(uint64_t session, uint64_t handle) {
  SequenceId id{};
  {
    const std::lock_guard lock(mutex_);
    const auto link = links_.find(session);
    if (link == links_.end()) return;
    const auto it = link->second.handles.find(handle);
    if (it == link->second.handles.end()) return;
    id = it->second;
    drop(id, "cancelled");
  }
  post_cancels({id});
}

void EngineService::pause(uint64_t session, uint64_t handle, bool paused) {
  SequenceId id{};
  {
    const std::lock_guard lock(mutex_);
    const auto link = links_.find(session);
    if (link == links_.end()) return;
    const auto it = link->second.handles.find(handle);
    if (it == link->second.handles.end()) return;
    id = it->second;
    Sequence& sequence = sequences_.at(id);
    if (sequence.paused == paused) return;
    sequence.paused = paused;
    num_paused_ += paused ? 1 : -1;
    ++num_posted_;
  }
  const absl::Status status =
      paused ? post_(PauseCommand{.sequence = id}) : post_(UnpauseCommand{.sequence = id});
  if (status.ok()) return;
  // A lost pause would let a slow reader's sequence run on, a lost continue would keep it for ever.
  {
    const std::lock_guard lock(mutex_);
    --num_posted_;
  }
  cancel(session, handle);
}

void EngineService::forget_session(uint64_t session) {
  std::vector<SequenceId> cancelled;
  {
    const std::lock_guard lock(mutex_);
    const auto link = links_.find(session);
    if (link == links_.end()) return;
    for (const auto& [handle, id] : link->second.handles) cancelled.push_back(id);
    for (const SequenceId id : cancelled) drop(id, "session_ended");
    if (const auto router = routers_.find(link->second.router);
        router != routers_.end() && --router->second == 0) {
      routers_.erase(router);
    }
    links_.erase(link);
  }
  post_cancels(std::move(cancelled));
}

void EngineService::post_cancels(std::vector<SequenceId> sequences) {
  if (sequences.empty()) return;
  Post post;
  {
    const std::lock_guard lock(mutex_);
    post = post_;
    num_posted_ += sequences.size();
  }
  std::vector<SequenceId> left;
  for (const SequenceId id : sequences) {
    if (!post(CancelCommand{.sequence = id}).ok()) left.push_back(id);
  }
  const std::lock_guard lock(mutex_);
  num_posted_ -= left.size();
  unposted_cancels_.insert(unposted_cancels_.end(), left.begin(), left.end());
}

void EngineService::count(SequenceId id) {
  if (uncounted_.erase(id) == 0) return;
  const auto link = links_.find(sequences_.at(id).session);
  if (link != links_.end()) ++link->second.num_counted;
}

void EngineService::erase(SequenceId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  count(id);
  if (it->second.paused) --num_paused_;
  if (const auto link = links_.find(it->second.session); link != links_.end()) {
    link->second.handles.erase(it->second.handle);
  }
  sequences_.erase(it);
}

void EngineService::drain(absl::Time move_time) {
  const std::lock_guard lock(mutex_);
  draining_ = leaving_ = tell_all_ = true;
  move_time_ = std::min(move_time, move_time_);
}

grpc::ServerUnaryReactor* EngineService::Drain(grpc::CallbackServerContext* call,
                                               const internal::v1::DrainRequest* request,
                                               internal::v1::DrainResponse* response) {
  absl::Status status;
  {
    const std::lock_guard lock(mutex_);
    if (hello_ == nullptr || hello_->replica_id() != request->replica_id()) {
      status = absl::NotFoundError("replica_id: this is another replica, or another life of it");
    } else if (leaving_) {
      if (request->undrain()) status = absl::FailedPreconditionError("the worker shuts down");
    } else {
      const absl::Duration grace = request->has_grace_seconds()
                                       ? absl::Seconds(request->grace_seconds())
                                       : options_.drain_grace;
      draining_ = !request->undrain();
      moving_ = draining_ && grace <= absl::ZeroDuration();
      move_time_ = draining_ ? absl::Now() + grace : absl::InfiniteFuture();
      tell_all_ = true;
    }
    if (status.ok()) *response->mutable_load() = load_of(Link());
  }
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  reactor->Finish(to_grpc_status(status));
  return reactor;
}

void EngineService::close() {
  std::vector<std::shared_ptr<lckv::Session>> sessions;
  std::unordered_map<uint64_t, WorkerFrame> last;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (const auto& [id, link] : links_) {
      sessions.push_back(link.session);
      if (link.greeted) *last[id].mutable_load() = load_of(link);
    }
  }
  for (const auto& session : sessions) {
    // No report may have come since drain(): without its word a router takes the end for a death.
    if (const auto it = last.find(session->id()); it != last.end()) {
      session->send(std::move(it->second));
    }
    session->end(absl::UnavailableError("the worker shuts down"),
                 lckv::Session::Ending::kAfterFrames);
  }
}

size_t EngineService::num_sequences() const {
  const std::lock_guard lock(mutex_);
  return sequences_.size() + (telling_ ? 1 : 0);
}

absl::Duration EngineService::step_age(absl::Time now) const {
  const std::lock_guard lock(mutex_);
  const bool can_go_on = sequences_.size() > static_cast<size_t>(num_paused_);
  const absl::Time since = can_go_on ? moved_ : turned_;
  // A loop that turns as often as it beats is not late.
  const absl::Duration slack = can_go_on ? absl::ZeroDuration() : 2 * options_.beat_interval;
  return std::max(now - since - slack, absl::ZeroDuration());
}

}  // namespace lckv
