// The call's part that finds replicas for its choices and tells them what the relay wants.
#include <algorithm>
#include <optional>
#include <random>
#include <utility>

#include "absl/time/clock.h"
#include "router/api/generate_call.h"
#include "router/routing/stable_hash.h"
#include "rpc/status_mapping.h"

namespace lckv {

CallQueue::Entry GenerateCall::entry_for(std::vector<uint32_t> choices) const {
  const GenerateSpec& spec = relay_->spec();
  CallQueue::Entry entry;
  entry.key = {.model = spec.model,
               .fingerprint = relay_->required_fingerprint(),
               .affinity = spec.affinity,
               .prefix_hash = prefix_hash(spec.tenant, spec.prompt),
               .num_sequences = static_cast<uint32_t>(choices.size()),
               .ticket = ticket_};
  entry.choices = std::move(choices);
  entry.priority = spec.priority;
  entry.arrival = arrival_;
  entry.since = absl::Now();
  entry.deadline = absl::FromChrono(context_.deadline());
  return entry;
}

void GenerateCall::enqueue(CallQueue::Entry entry) {
  entry.call = shared_from_this();
  environment_.queue.add(std::move(entry));
  bool gone = false;
  {
    std::lock_guard lock(mutex_);
    gone = phase_ != Phase::kOpen;
  }
  if (gone) environment_.queue.remove(this);
}

// What has lost its replica goes back to the queue, choice by choice: it need not find one replica
// with room for all.
std::vector<CallQueue::Entry> GenerateCall::entries_for_needs() {
  std::vector<CallQueue::Entry> entries;
  for (const ReplicaNeed& need : relay_->take_needs()) {
    const ModelMetrics& metrics = environment_.metrics.model(model_name_);
    (need.resume ? metrics.resumes : metrics.retries)->Increment();
    if (need.charged && !environment_.retries.spend(model_name_)) {
      relay_->fail(with_retry(absl::UnavailableError("the replica was lost or full, and this "
                                                     "model's calls were retried too often"),
                              absl::Seconds(1)),
                   false);
      return {};
    }
    seats_[need.choice].resuming = need.resume;
    CallQueue::Entry& entry = entries.emplace_back(entry_for({need.choice}));
    entry.kind = need.resume ? CallQueue::Kind::kResume : CallQueue::Kind::kRetry;
    entry.since = need.since;
    if (need.delayed) {
      std::random_device jitter;
      const double share = std::uniform_real_distribution<double>(0, 1)(jitter);
      entry.not_before = absl::Now() + retry_backoff(num_retries_++, share);
    }
  }
  return entries;
}

WaitingCall::Assignment GenerateCall::assign(const ReplicaView& replica,
                                             const std::vector<uint32_t>& choices) {
  std::optional<CallQueue::Entry> elsewhere;
  {
    std::lock_guard lock(mutex_);
    if (phase_ != Phase::kOpen || relay_->failed()) return Assignment::kGone;
    if (!relay_->accepts(replica.model->hello.fingerprint())) {
      elsewhere = entry_for(choices);
      elsewhere->kind = relay_->has_progress() ? CallQueue::Kind::kResume : CallQueue::Kind::kRetry;
    } else if (!place(replica, choices)) {
      return Assignment::kNotTaken;
    }
  }
  if (elsewhere) {
    enqueue(*std::move(elsewhere));
    return Assignment::kMoved;
  }
  replica.link->flush();
  return Assignment::kTaken;
}

// False where the replica does not take them.
bool GenerateCall::place(const ReplicaView& replica, const std::vector<uint32_t>& choices) {
  const absl::Time before = absl::Now();
  std::vector<internal::v1::Submit> submits;
  for (const uint32_t choice : choices) submits.push_back(relay_->submit_of(choice));
  const auto first =
      replica.link->submit(shared_from_this(), replica.model.get(), std::move(submits));
  if (!first) return false;
  for (size_t i = 0; i < choices.size(); ++i) {
    Seat& seat = seats_[choices[i]];
    seat.link = replica.link;
    seat.handle = *first + i;
  }
  replica_ = replica.address;
  const absl::Time now = absl::Now();
  relay_->on_placed(choices, replica.model->hello.fingerprint(), now);
  run_commands();
  if (!placed_) {
    placed_ = true;
    environment_.metrics.count_route(waited_);
    environment_.metrics.model(model_name_)
        .queue_wait_seconds->Observe(absl::ToDoubleSeconds(now - arrival_));
  }
  environment_.metrics.observe_overhead(OverheadStage::kRoute,
                                        absl::ToDoubleSeconds(absl::Now() - before));
  return true;
}

// Tells the replicas' links what the relay wants of them.
void GenerateCall::run_commands() {
  for (const RelayCommand& command : relay_->take_commands()) {
    const Seat& seat = seats_[command.choice];
    switch (command.kind) {
      case RelayCommand::Kind::kCancel:
        seat.link->cancel(seat.handle);
        break;
      case RelayCommand::Kind::kPause:
        seat.link->pause(seat.handle);
        break;
      case RelayCommand::Kind::kUnpause:
        seat.link->unpause(seat.handle);
        break;
    }
  }
}

std::vector<std::shared_ptr<SessionLink>> GenerateCall::links() const {
  std::vector<std::shared_ptr<SessionLink>> links;
  for (const Seat& seat : seats_) {
    if (seat.link != nullptr && std::find(links.begin(), links.end(), seat.link) == links.end()) {
      links.push_back(seat.link);
    }
  }
  return links;
}

}  // namespace lckv
