#include "tests/simulation/simulated_leader.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/kv/layer_plan.h"

namespace lckv::fleet_simulation {
namespace {

using internal::v1::WorkerFrame;

constexpr int32_t kMaxWaiting = 6;

PassPlan plain_passes() {
  auto plan = parse_layer_map("0_1", {.num_layers = 2, .kv_heads = 1, .head_dim = 16});
  LCKV_CHECK(plan.ok());
  return make_pass_plan(*std::move(plan));
}

// Few seats and a short queue, so that sequences wait here and at the router; blocks for all seats,
// so that nothing that is preempted takes a place that was promised.
SchedulerOptions small_options(const PassPlan& passes) {
  SchedulerOptions options;
  options.max_num_seqs = 4;
  options.max_waiting = kMaxWaiting;
  options.max_context = 128;
  options.max_batched_rows = 32;
  options.max_row_layers = int64_t{32} * passes.layers.num_layers();
  options.slots_per_block.assign(passes.num_units(), 8);
  options.num_blocks = 4 * 16 * passes.num_units();
  options.staging_rows = 128;
  return options;
}

std::shared_ptr<const SequenceSpec> spec_of(const internal::v1::Submit& submit) {
  auto spec = std::make_shared<SequenceSpec>();
  spec->continued = submit.resumed_size() > 0;
  spec->prompt.assign(submit.prompt().begin(), submit.prompt().end());
  spec->resumed.assign(submit.resumed().begin(), submit.resumed().end());
  spec->sampling.seed = submit.sampling().seed();
  spec->sampling.choice = submit.choice();
  spec->max_new_tokens = static_cast<int32_t>(submit.max_new_tokens());
  return spec;
}

}  // namespace

uint32_t token_of(const std::string& fingerprint, uint64_t seed, uint32_t choice, size_t index,
                  uint32_t previous) {
  const std::string key =
      absl::StrCat(fingerprint, ",", seed, ",", choice, ",", index, ",", previous);
  return 10 + static_cast<uint32_t>(std::hash<std::string>{}(key) % 1000);
}

SimulatedLeader::SimulatedLeader(std::string replica_id, std::string fingerprint)
    : replica_id_(std::move(replica_id)), fingerprint_(std::move(fingerprint)) {
  PassPlan passes = plain_passes();
  const SchedulerOptions options = small_options(passes);
  scheduler_ = std::make_unique<Scheduler>(options, std::move(passes));
}

internal::v1::Load SimulatedLeader::load(Session& session) {
  const SchedulerLoad now = scheduler_->load();
  internal::v1::Load load;
  load.set_step(step_);
  load.set_step_microseconds(1000);
  load.set_num_running(static_cast<uint32_t>(now.num_running));
  load.set_num_waiting(static_cast<uint32_t>(now.num_waiting));
  load.set_num_taken(session.num_taken);
  load.set_draining(draining_);
  load.set_moving(moving_);
  const int32_t room = kMaxWaiting - now.num_waiting;
  if (!draining_ && room > 0) {
    const auto sessions = static_cast<int32_t>(sessions_.size());
    load.set_credit(static_cast<uint32_t>(std::max(room / sessions, 1)));
  }
  session.promised = std::max(session.promised, session.num_taken + load.credit());
  return load;
}

WorkerFrame SimulatedLeader::open(uint64_t session) {
  WorkerFrame frame;
  internal::v1::Hello& hello = *frame.mutable_hello();
  hello.set_replica_id(replica_id_);
  hello.set_model("m");
  hello.set_fingerprint(fingerprint_);
  hello.set_vocabulary_size(2000);
  hello.set_max_context_tokens(128);
  *frame.mutable_load() = load(sessions_[session]);
  return frame;
}

void SimulatedLeader::receive(uint64_t session, const internal::v1::RouterFrame& frame,
                              absl::Time now, std::vector<Outgoing>& answers) {
  const auto with = [&](uint64_t handle, auto&& act) {
    const auto& handles = sessions_.at(session).handles;
    const auto it = handles.find(handle);
    if (it != handles.end()) act(it->second);
  };
  if (frame.has_submit()) submit(session, frame.submit(), now, answers);
  if (frame.has_pause()) {
    with(frame.pause().handle(), [this](SequenceId id) { scheduler_->pause(id); });
  }
  if (frame.has_continue_()) {
    with(frame.continue_().handle(), [this](SequenceId id) { scheduler_->unpause(id); });
  }
  if (frame.has_cancel()) {
    with(frame.cancel().handle(), [this](SequenceId id) {
      scheduler_->cancel(id);
      end(id);
    });
  }
}

void SimulatedLeader::end(SequenceId id) {
  const auto it = sequences_.find(id);
  sessions_.at(it->second.session).handles.erase(it->second.handle);
  sequences_.erase(it);
}

void SimulatedLeader::submit(uint64_t session, const internal::v1::Submit& submit, absl::Time now,
                             std::vector<Outgoing>& answers) {
  Session& from = sessions_.at(session);
  if (++from.num_taken > from.promised) ++num_unpromised_;
  const SequenceId id{next_sequence_++};
  absl::Status status = absl::UnavailableError("drains");
  auto spec = spec_of(submit);
  if (!draining_) status = scheduler_->submit(id, spec, now);
  if (status.ok()) {
    from.handles[submit.handle()] = id;
    sequences_[id] = {
        .session = session, .handle = submit.handle(), .spec = std::move(spec), .generated = {}};
    return;
  }
  WorkerFrame frame;
  frame.mutable_refused()->set_handle(submit.handle());
  frame.mutable_refused()->set_code(static_cast<int>(status.code()));
  *frame.mutable_load() = load(from);
  answers.push_back({session, std::move(frame)});
}

void SimulatedLeader::forget(uint64_t session) {
  for (auto it = sequences_.begin(); it != sequences_.end();) {
    if (it->second.session == session) {
      scheduler_->cancel(it->first);
      it = sequences_.erase(it);
    } else {
      ++it;
    }
  }
  sessions_.erase(session);
}

void SimulatedLeader::set_draining(bool draining, bool moving) {
  draining_ = draining;
  moving_ = moving;
  for (auto& [number, session] : sessions_) session.beat_time = absl::InfinitePast();
}

StepResult SimulatedLeader::run(const StepPlan& plan) {
  for (const SeatId seat : plan.closed) seats_.erase(seat);
  for (const SeatOpening& opening : plan.opened) {
    seats_[opening.seat] = opening.sequence;
    if (const auto it = sequences_.find(opening.sequence); it != sequences_.end()) {
      it->second.generated = opening.generated;
    }
  }
  StepResult result{.step = plan.step, .samples = {}, .settled_rows = {}};
  for (const SampleRow& row : plan.samples) {
    SampleResult& sample = result.samples.emplace_back();
    const auto it = sequences_.find(seats_.at(row.seat));
    if (it == sequences_.end()) continue;  // cancelled
    Sequence& sequence = it->second;
    const int32_t previous =
        sequence.generated.empty() ? sequence.spec->prompt.back() : sequence.generated.back();
    const SamplingSpec& sampling = sequence.spec->sampling;
    sample.token =
        static_cast<int32_t>(token_of(fingerprint_, sampling.seed, sampling.choice,
                                      sequence.generated.size(), static_cast<uint32_t>(previous)));
    sequence.generated.push_back(sample.token);
  }
  return result;
}

void SimulatedLeader::tell(const std::vector<SequenceEvent>& events,
                           std::vector<Outgoing>& frames) {
  std::map<uint64_t, WorkerFrame> of_session;
  for (const SequenceEvent& event : events) {
    const auto it = sequences_.find(event.sequence);
    if (it == sequences_.end()) continue;
    const uint64_t handle = it->second.handle;
    internal::v1::Step& step = *of_session[it->second.session].mutable_step();
    step.set_step(step_);
    if (event.kind == SequenceEvent::Kind::kStarted) step.add_started()->set_handle(handle);
    if (event.kind == SequenceEvent::Kind::kToken) {
      step.add_handle(handle);
      step.add_token(static_cast<uint32_t>(event.token));
    }
    if (event.kind == SequenceEvent::Kind::kFinished) {
      internal::v1::Finished& finished = *step.add_finished();
      finished.set_handle(handle);
      finished.set_reason(internal::v1::Finished::REASON_MAX_NEW_TOKENS);
      end(event.sequence);
    }
  }
  for (auto& [session, frame] : of_session) frames.push_back({session, std::move(frame)});
}

void SimulatedLeader::seated(const StepPlan& plan, std::vector<Outgoing>& frames) const {
  std::map<uint64_t, WorkerFrame> of_session;
  for (const SeatOpening& opening : plan.opened) {
    const auto it = sequences_.find(opening.sequence);
    if (it == sequences_.end()) continue;
    of_session[it->second.session].mutable_seated()->add_handle(it->second.handle);
  }
  for (auto& [session, frame] : of_session) frames.push_back({session, std::move(frame)});
}

void SimulatedLeader::turn(absl::Time now, std::vector<Outgoing>& frames) {
  const size_t first = frames.size();
  if (const auto plan = scheduler_->plan(now)) {
    seated(*plan, frames);
    const StepResult result = run(*plan);
    ++step_;
    tell(scheduler_->commit(result, now), frames);
  }
  for (size_t i = first; i < frames.size(); ++i) {
    sessions_.at(frames[i].session).beat_time = now;
  }
  for (auto& [number, session] : sessions_) {
    if (now - session.beat_time < absl::Milliseconds(500)) continue;
    session.beat_time = now;
    frames.push_back({number, {}});
  }
  for (size_t i = first; i < frames.size(); ++i) {
    *frames[i].frame.mutable_load() = load(sessions_.at(frames[i].session));
  }
}

std::string SimulatedLeader::leak() const {
  const SchedulerLoad load = scheduler_->load();
  if (load.num_running == 0 && load.num_waiting == 0 && load.num_free_blocks == load.num_blocks) {
    return "";
  }
  return absl::StrCat(replica_id_, " still has ", load.num_running, " running and ",
                      load.num_waiting, " waiting sequences, ", load.num_free_blocks, " of ",
                      load.num_blocks, " blocks are free");
}

}  // namespace lckv::fleet_simulation
