// The engine's side of EngineService: what a turn of the loop did, sorted into sessions.
#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "rpc/status_mapping.h"
#include "worker/service/engine_service.h"

namespace lckv {

using internal::v1::Load;
using internal::v1::WorkerFrame;

Load EngineService::load_of(const Link& link) const {
  Load load;
  load.set_step(step_);
  load.set_num_layers(num_layers_);
  load.set_step_microseconds(static_cast<uint64_t>(absl::ToInt64Microseconds(step_time_)));
  load.set_num_running(load_.num_running);
  load.set_num_waiting(load_.num_waiting);
  for (const auto& [priority, count] : load_.waiting) {
    internal::v1::PriorityCount& waiting = *load.add_waiting();
    waiting.set_priority(priority);
    waiting.set_count(static_cast<uint32_t>(count));
  }
  load.set_seats_per_second(seats_.per_second());
  load.set_seat_seconds(absl::ToDoubleSeconds(seats_.held()));
  load.set_num_free_blocks(load_.num_free_blocks);
  load.set_num_blocks(load_.num_blocks);
  load.set_num_routers(static_cast<uint32_t>(routers_.size()));
  load.set_draining(draining_);
  load.set_moving(moving_);
  load.set_num_taken(link.num_counted);
  // The queue's room, less what is in the mailbox, in equal shares of the routers, whose newest
  // sessions alone submit. A last place is offered to all: who comes too late is refused and may
  // come again.
  const int64_t in_mailbox =
      static_cast<int64_t>(num_posted_) - static_cast<int64_t>(num_commands_);
  const int64_t room = options_.max_waiting - load_.num_waiting - std::max<int64_t>(in_mailbox, 0);
  if (room > 0 && !draining_) {
    const auto routers = static_cast<int64_t>(std::max<size_t>(routers_.size(), 1));
    // On top of what the router submitted and this load does not count, as it takes that off.
    load.set_credit(static_cast<uint32_t>(std::max<int64_t>(room / routers, 1) + link.num_read -
                                          link.num_counted));
  }
  return load;
}

void EngineService::log_end(const SequenceEnd& end) {
  if (log_ != nullptr) log_->write("sequence", describe(end));
}

// Whoever asked for it wants no more of it.
void EngineService::drop(SequenceId id, absl::string_view reason) {
  const Sequence& sequence = sequences_.at(id);
  log_end({.spec = *sequence.spec, .times = sequence.times, .reason = reason, .now = absl::Now()});
  metrics_->cancelled();
  erase(id);
}

void EngineService::sort_event(const SequenceEvent& event, absl::Time now, StepFrames& frames) {
  Sequence& sequence = sequences_.at(event.sequence);
  switch (event.kind) {
    case SequenceEvent::Kind::kStarted:
      metrics_->started(sequence.times, event, now);
      frames.started(sequence.handle, event, now - sequence.times.arrived,
                     sequence.spec->num_prompt_logprobs.has_value());
      break;
    case SequenceEvent::Kind::kToken:
      metrics_->token(sequence.times, *sequence.spec, now);
      frames.token(sequence.handle, event);
      break;
    case SequenceEvent::Kind::kPromptLogprob:
      frames.prompt_logprob(sequence.handle, event);
      break;
    case SequenceEvent::Kind::kFinished:
      metrics_->finished(sequence.times, *sequence.spec, event, now);
      if (sequence.times.started <= now) seats_.ended(now - sequence.times.started);
      frames.finished(sequence.handle, event);
      log_end({.spec = *sequence.spec,
               .times = sequence.times,
               .reason = name_of(event.reason),
               .now = now,
               .num_prefill_walks = event.num_prefill_walks,
               .num_preemptions = event.num_preemptions});
      erase(event.sequence);
      break;
  }
}

void EngineService::sort_events(const StepReport& report, absl::Time now,
                                std::unordered_map<uint64_t, StepFrames>& frames) {
  const auto frames_of = [&](SequenceId id) -> StepFrames* {
    const auto it = sequences_.find(id);
    if (it == sequences_.end()) return nullptr;  // cancelled
    return &frames.try_emplace(it->second.session, report.step).first->second;
  };
  for (const SequenceId id : report.seated) {
    seats_.seated();
    if (StepFrames* of_session = frames_of(id)) of_session->seated(sequences_.at(id).handle);
  }
  for (const SequenceEvent& event : report.events) {
    if (StepFrames* of_session = frames_of(event.sequence)) sort_event(event, now, *of_session);
  }
  for (const Refusal& refusal : report.refusals) {
    StepFrames* of_session = frames_of(refusal.sequence);
    if (of_session == nullptr) continue;
    absl::Status status = refusal.status;
    if (absl::IsInvalidArgument(status)) status = with_field(status, "prompt", status.message());
    const Sequence& sequence = sequences_.at(refusal.sequence);
    of_session->refused(sequence.handle, status);
    log_end({.spec = *sequence.spec, .times = sequence.times, .reason = "refused", .now = now});
    erase(refusal.sequence);
  }
}

void EngineService::report(const StepReport& report) {
  const absl::Time now = absl::Now();
  std::vector<std::shared_ptr<lckv::Session>> sessions;
  std::vector<std::pair<std::shared_ptr<lckv::Session>, WorkerFrame>> outgoing;
  std::vector<SequenceId> cancels;
  {
    const std::lock_guard lock(mutex_);
    cancels.swap(unposted_cancels_);
    step_ = report.step;
    num_commands_ = report.num_commands;
    if (report.ran_step) step_time_ = report.step_time;
    load_ = report.load;
    while (!uncounted_.empty() && *uncounted_.begin() <= report.last_submit) {
      count(*uncounted_.begin());
    }
    turned_ = now;
    std::unordered_map<uint64_t, StepFrames> frames;
    sort_events(report, now, frames);
    seats_.observe(now, report.load.num_waiting > 0);
    const bool moves = report.ran_step || report.num_layers != num_layers_;
    num_layers_ = report.num_layers;
    if (moves || sequences_.size() == static_cast<size_t>(num_paused_)) moved_ = now;
    metrics_->observe(report);
    if (draining_ && !moving_ && now >= move_time_) moving_ = tell_all_ = true;
    for (auto& [id, link] : links_) {
      sessions.push_back(link.session);
      link.missed_news = !link.greeted && (link.missed_news || tell_all_);
      if (!link.greeted) continue;
      const Load load = load_of(link);
      std::vector<WorkerFrame> to_send;
      if (const auto it = frames.find(id); it != frames.end()) to_send = it->second.take();
      const bool has_credit = load.credit() > link.num_read - link.num_counted;
      const bool due = tell_all_ || (has_credit && !link.had_credit) ||
                       now - link.session->last_sent() >= options_.beat_interval / 2;
      if (to_send.empty() && due) to_send.emplace_back();
      if (!to_send.empty()) link.had_credit = has_credit;
      for (WorkerFrame& frame : to_send) {
        *frame.mutable_load() = load;
        outgoing.emplace_back(link.session, std::move(frame));
      }
    }
    tell_all_ = false;
    telling_ = !outgoing.empty();
  }
  post_cancels(std::move(cancels));
  for (auto& [session, frame] : outgoing) session->send(std::move(frame));
  {
    const std::lock_guard lock(mutex_);
    telling_ = false;
  }
  for (const auto& session : sessions) session->check(now);
}

}  // namespace lckv
