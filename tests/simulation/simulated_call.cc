#include "tests/simulation/simulated_call.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace lckv::fleet_simulation {

SimulatedCall::SimulatedCall(World& world, GenerateSpec spec)
    : world_(world),
      // Replicas die at random here, so no number of deaths is the request's own doing.
      relay_(std::move(spec),
             {.pause_above_bytes = 200, .unpause_below_bytes = 50, .max_deaths = 1000}, world.now),
      arrival_(world.now),
      seats_(relay_.spec().choices.size()),
      got_(seats_.size()) {}

void SimulatedCall::begin() {
  if (!relay_.prepare().ok()) disorder_ = "the request was refused";
  world_.retries.earn("m");
  world_.queue->add(entry_for(relay_.unplaced()));
}

CallQueue::Entry SimulatedCall::entry_for(std::vector<uint32_t> choices) {
  CallQueue::Entry entry{.call = shared_from_this(),
                         .key = {.model = relay_.spec().model,
                                 .fingerprint = relay_.required_fingerprint(),
                                 .affinity = "",
                                 .num_sequences = static_cast<uint32_t>(choices.size())},
                         .choices = std::move(choices),
                         .arrival = arrival_,
                         .since = world_.now};
  if (world_.defect == Defect::kCrossedFingerprint) entry.key.fingerprint.clear();
  return entry;
}

WaitingCall::Assignment SimulatedCall::assign(const ReplicaView& replica,
                                              const std::vector<uint32_t>& choices) {
  if (relay_.failed()) return Assignment::kGone;
  if (world_.defect != Defect::kCrossedFingerprint &&
      !relay_.accepts(replica.model->hello.fingerprint())) {
    CallQueue::Entry entry = entry_for(choices);
    entry.kind = relay_.has_progress() ? CallQueue::Kind::kResume : CallQueue::Kind::kRetry;
    world_.queue->add(std::move(entry));
    return Assignment::kMoved;
  }
  std::vector<internal::v1::Submit> submits;
  for (const uint32_t choice : choices) {
    internal::v1::Submit& submit = submits.emplace_back(relay_.submit_of(choice));
    if (submit.resumed().empty()) continue;
    if (world_.defect == Defect::kResumeEarly) submit.mutable_resumed()->RemoveLast();
    if (world_.defect == Defect::kResumeLate) submit.add_resumed(submit.resumed(0));
    if (world_.defect == Defect::kOtherSeed) submit.mutable_sampling()->set_seed(1);
  }
  const auto& link = world_.links.at(replica.address);
  std::vector<uint64_t> handles;
  if (!link->submit(shared_from_this(), std::move(submits), handles, world_.now)) {
    return Assignment::kNotTaken;
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    Seat& seat = seats_[choices[i]];
    seat = {.link = link.get(), .handle = handles[i], .attempt = seat.attempt + 1};
  }
  relay_.on_placed(choices, replica.model->hello.fingerprint(), world_.now);
  pump();
  return Assignment::kTaken;
}

ChoiceAttempt SimulatedCall::as_told(ChoiceAttempt attempt) const {
  if (world_.defect == Defect::kStaleDelivery) attempt.attempt = seats_[attempt.choice].attempt;
  return attempt;
}

void SimulatedCall::on_update(ChoiceAttempt attempt, const SequenceUpdate& update) {
  relay_.on_update(as_told(attempt), update, world_.now);
  pump();
}

void SimulatedCall::on_refused(ChoiceAttempt attempt, const internal::v1::Refused& refused) {
  relay_.on_refused(as_told(attempt), refused, world_.now);
  pump();
}

void SimulatedCall::on_lost(ChoiceAttempt attempt, LossKind kind, const absl::Status& why) {
  relay_.on_lost(as_told(attempt), kind, why, world_.now);
  pump();
}

void SimulatedCall::expire(const absl::Status& why) {
  relay_.fail(why, false);
  pump();
}

void SimulatedCall::hang_up() {
  hung_up_ = true;
  relay_.fail(absl::CancelledError("the caller went away"), true);
  world_.queue->remove(this);
  pump();
}

void SimulatedCall::pump() {
  for (const RelayCommand& command : relay_.take_commands()) {
    const Seat& seat = seats_[command.choice];
    if (command.kind == RelayCommand::Kind::kCancel) {
      seat.link->cancel(seat.handle);
    } else {
      seat.link->set_paused(seat.handle, command.kind == RelayCommand::Kind::kPause, world_.now);
    }
  }
  for (const ReplicaNeed& need : relay_.take_needs()) {
    if (need.charged && !world_.retries.spend("m")) {
      relay_.fail(absl::UnavailableError("retried too often"), false);
      return;
    }
    CallQueue::Entry entry = entry_for({need.choice});
    entry.kind = need.resume ? CallQueue::Kind::kResume : CallQueue::Kind::kRetry;
    if (need.delayed) {
      entry.not_before =
          world_.now +
          retry_backoff(num_retries_++, static_cast<double>(world_.dice() % 100) / 100.0);
    }
    world_.queue->add(std::move(entry));
  }
}

void SimulatedCall::read(int num_events) {
  v1::GenerateEvent event;
  for (int i = 0; i < num_events && relay_.next_event(event); ++i) {
    Got& got = got_[event.choice()];
    if (got.finished) disorder_ = "an event after Finished";
    if (event.has_started()) {
      if (!got.fingerprint.empty()) disorder_ = "started twice";
      got.fingerprint = event.started().fingerprint();
    }
    if (event.has_tokens()) {
      if (event.tokens().position() != got.ids.size()) {
        disorder_ = absl::StrCat("position ", event.tokens().position(), " after ", got.ids.size(),
                                 " tokens");
      }
      got.ids.insert(got.ids.end(), event.tokens().ids().begin(), event.tokens().ids().end());
    }
    got.finished = got.finished || event.has_finished();
  }
  pump();
}

std::string SimulatedCall::verdict() const {
  if (!disorder_.empty()) return disorder_;
  if (!hung_up_ && !relay_.status().ok()) return std::string(relay_.status().message());
  const GenerateSpec& spec = relay_.spec();
  for (uint32_t choice = 0; choice < got_.size(); ++choice) {
    const Got& got = got_[choice];
    if (!hung_up_ && (!got.finished || got.ids.size() != *spec.max_new_tokens)) {
      return absl::StrCat(got.ids.size(), " tokens of ", *spec.max_new_tokens);
    }
    uint32_t previous = spec.prompt.back();
    for (size_t i = 0; i < got.ids.size(); ++i) {
      previous = token_of(got.fingerprint, spec.sampling.seed(), choice, i, previous);
      if (got.ids[i] != previous)
        return absl::StrCat("token ", i, " of choice ", choice, " is wrong");
    }
  }
  return "";
}

}  // namespace lckv::fleet_simulation
