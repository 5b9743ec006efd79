#include "router/call_queue.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "router/admission.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

absl::Status queue_full(absl::string_view why) {
  return with_retry(absl::ResourceExhaustedError(why), absl::Seconds(1));
}

absl::Status nothing_ready(absl::string_view why) {
  return with_retry(absl::UnavailableError(why), absl::Seconds(1));
}

// Of the replica that has most, of those that serve the key.
uint32_t most_credit(const RoutingKey& key, const ReplicaSet& set) {
  uint32_t most = 0;
  for (const ReplicaView& replica : set.replicas) {
    if (serves(key, replica)) most = std::max(most, replica.available_credit());
  }
  return most;
}

}  // namespace

CallQueue::CallQueue(CallQueueOptions options, ReplicaSource source, const RoutingPolicy& policy,
                     std::function<void(const std::string& model, int change)> on_depth)
    : options_(options),
      source_(std::move(source)),
      policy_(policy),
      on_depth_(std::move(on_depth)) {}

CallQueue::LineName CallQueue::line_of(const Entry& entry) {
  // What flags of a replica set apart: who waits for the one kind holds nobody up who waits for the
  // other.
  const internal::v1::Hello& hello = entry.key.model->hello;
  return {entry.kind != Kind::kResume,
          absl::StrCat(hello.model(), "\n", entry.key.fingerprint, "\n", hello.max_context_tokens(),
                       "\n", hello.max_logprobs())};
}

void CallQueue::add(Entry entry) {
  const std::shared_ptr<WaitingCall> call = entry.call;
  if (absl::Status why = refusal(entry); !why.ok()) {
    call->expire(why);
    return;
  }
  const LineName name = line_of(entry);
  const RoutingKey key = entry.key;
  Position position;
  {
    std::lock_guard lock(mutex_);
    if (entry.not_before > entry.since) {
      count(entry, 1);
      const absl::Time due = entry.not_before;
      delayed_.emplace(due, std::move(entry));
      return;
    }
    position = put(std::move(entry));
  }
  dispatch();
  const bool served = is_served(key);
  absl::Status why;
  {
    std::lock_guard lock(mutex_);
    const auto line = lines_.find(name);
    if (line == lines_.end()) return;
    const auto it = line->second.find(position);
    if (it == line->second.end()) return;
    if (it->second.kind == Kind::kNew && num_new_ > options_.max_calls) {
      why = queue_full("all queues are full");
    }
    if (!served && it->second.kind == Kind::kNew &&
        options_.max_wait_for_ready <= absl::ZeroDuration()) {
      why = nothing_ready("no replica of this model is ready");
    }
    if (!why.ok()) take(line, it);
  }
  if (!why.ok()) call->expire(why);
}

absl::Status CallQueue::refusal(const Entry& entry) {
  if (entry.kind != Kind::kNew || entry.deadline == absl::InfiniteFuture()) return absl::OkStatus();
  // Of those with the same needs, whoever comes before it.
  int64_t num_queued = 0;
  {
    std::lock_guard lock(mutex_);
    if (const auto line = lines_.find(line_of(entry)); line != lines_.end()) {
      num_queued = std::count_if(line->second.begin(), line->second.end(), [&](const auto& other) {
        return other.second.priority >= entry.priority;
      });
    }
  }
  const Outlook outlook = outlook_of(*source_.snapshot(), entry.key, entry.priority, num_queued);
  const absl::Duration late = lateness(outlook, entry.since, entry.deadline);
  if (late <= absl::ZeroDuration()) return absl::OkStatus();
  return with_retry(
      absl::DeadlineExceededError(absl::StrCat(
          "the deadline is too near for what waits before it: ",
          absl::FormatDuration(absl::Trunc(outlook.wait + outlook.run, absl::Milliseconds(1))))),
      std::clamp(late, absl::Seconds(1), absl::Seconds(60)));
}

void CallQueue::remove(const WaitingCall* call) {
  std::lock_guard lock(mutex_);
  for (auto line = lines_.begin(); line != lines_.end();) {
    const auto next_line = std::next(line);
    for (auto it = line->second.begin(); it != line->second.end();) {
      const auto next = std::next(it);
      const bool is_last = line->second.size() == 1;
      if (it->second.call.get() == call) {
        take(line, it);
        if (is_last) break;  // the line went with its last entry
      }
      it = next;
    }
    line = next_line;
  }
  std::erase_if(offered_, [call](const auto& offer) { return offer.second == call; });
  for (auto it = delayed_.begin(); it != delayed_.end();) {
    const auto next = std::next(it);
    if (it->second.call.get() == call) {
      count(it->second, -1);
      delayed_.erase(it);
    }
    it = next;
  }
}

void CallQueue::dispatch() {
  std::set<LineName> stuck;
  while (place_next(stuck)) {
  }
}

// Offers the first entry of some line that is not stuck to a replica; false where there is none.
bool CallQueue::place_next(std::set<LineName>& stuck) {
  {
    // Most of the time nobody waits.
    std::lock_guard lock(mutex_);
    if (lines_.empty()) return false;
  }
  const auto set = source_.snapshot();
  std::optional<Offer> offer;
  {
    std::lock_guard lock(mutex_);
    const auto line = std::find_if(lines_.begin(), lines_.end(),
                                   [&](const auto& l) { return !stuck.contains(l.first); });
    if (line == lines_.end()) return false;
    const LineName name = line->first;
    offer = take_offer(line, *set);
    if (!offer) stuck.insert(name);
  }
  if (!offer) return true;
  Entry& entry = offer->entry;
  const std::vector<uint32_t> offered(entry.choices.begin(),
                                      entry.choices.begin() + offer->num_choices);
  const auto assignment = entry.call->assign(set->replicas[offer->replica], offered);
  // Before the next pick, so that it counts these submits, or sees what the set was behind with.
  source_.refresh();
  if (assignment == WaitingCall::Assignment::kTaken ||
      assignment == WaitingCall::Assignment::kMoved) {
    entry.choices.erase(entry.choices.begin(), entry.choices.begin() + offer->num_choices);
    entry.key.num_sequences = static_cast<uint32_t>(entry.choices.size());
  }
  const bool is_left = assignment != WaitingCall::Assignment::kGone && !entry.choices.empty();
  std::lock_guard lock(mutex_);
  const bool is_wanted = offered_.erase(offer->number) > 0;  // its call was not removed meanwhile
  if (is_left && is_wanted) put_back(offer->position, std::move(entry));
  return true;
}

// The first of a line with its replica; nothing, and it stays, where no replica will do.
std::optional<CallQueue::Offer> CallQueue::take_offer(Lines::iterator line, const ReplicaSet& set) {
  const auto first = line->second.begin();
  RoutingKey key = first->second.key;
  auto replica = policy_.pick(key, set);
  if (!replica && key.num_sequences > 1) {
    // No replica may ever take all at once, and those behind must not wait for it.
    key.num_sequences = std::min(key.num_sequences, most_credit(key, set));
    if (key.num_sequences > 0) replica = policy_.pick(key, set);
  }
  if (!replica) return std::nullopt;
  LCKV_CHECK(key.num_sequences <= first->second.choices.size());
  const Position position = first->first;
  const uint64_t number = next_number_++;
  offered_.emplace(number, first->second.call.get());
  return Offer{.entry = take(line, first),
               .position = position,
               .number = number,
               .replica = *replica,
               .num_choices = key.num_sequences};
}

absl::Status CallQueue::overdue(const Entry& entry, bool served, absl::Time now) const {
  if (entry.kind == Kind::kNew) {
    const absl::Duration waited = now - entry.arrival;
    if (!served && waited > options_.max_wait_for_ready) {
      return nothing_ready("no replica of this model is ready");
    }
    return waited > options_.max_wait ? queue_full("waited too long for a replica")
                                      : absl::OkStatus();
  }
  const absl::Duration waited = now - entry.since;
  if (!served && waited > options_.resume_timeout) {
    return nothing_ready("the replica was lost, and no equal one became ready");
  }
  return waited > options_.max_wait ? nothing_ready("the replica was lost, and no other had room")
                                    : absl::OkStatus();
}

void CallQueue::tick(absl::Time now) {
  std::vector<std::pair<Entry, absl::Status>> expired;
  const auto set = source_.snapshot();
  bool released = false;
  {
    std::lock_guard lock(mutex_);
    released = release_delayed(now);
    for (auto line = lines_.begin(); line != lines_.end();) {
      auto next_line = std::next(line);
      const RoutingKey key = line->second.begin()->second.key;
      const bool served = std::any_of(set->replicas.begin(), set->replicas.end(),
                                      [&](const ReplicaView& r) { return serves(key, r); });
      for (auto it = line->second.begin(); it != line->second.end();) {
        auto next = std::next(it);
        const bool is_last = line->second.size() == 1;
        if (absl::Status why = overdue(it->second, served, now); !why.ok()) {
          expired.emplace_back(take(line, it), std::move(why));
          if (is_last) break;  // the line went with its last entry
        }
        it = next;
      }
      line = next_line;
    }
  }
  for (auto& [entry, why] : expired) entry.call->expire(why);
  if (released) dispatch();
}

bool CallQueue::release_delayed(absl::Time now) {
  bool released = false;
  while (!delayed_.empty() && delayed_.begin()->first <= now) {
    Entry entry = std::move(delayed_.begin()->second);
    delayed_.erase(delayed_.begin());
    count(entry, -1);
    put(std::move(entry));
    released = true;
  }
  return released;
}

bool CallQueue::is_served(const RoutingKey& key) {
  const auto set = source_.snapshot();
  return std::any_of(set->replicas.begin(), set->replicas.end(),
                     [&](const ReplicaView& replica) { return serves(key, replica); });
}

CallQueue::Entry CallQueue::take(Lines::iterator line, Line::iterator entry) {
  Entry taken = std::move(entry->second);
  line->second.erase(entry);
  if (line->second.empty()) lines_.erase(line);
  count(taken, -1);
  return taken;
}

CallQueue::Position CallQueue::put(Entry entry) {
  const Position position{entry.kind != Kind::kResume, -int64_t{entry.priority}, entry.arrival,
                          next_number_++};
  put_back(position, std::move(entry));
  return position;
}

void CallQueue::put_back(Position position, Entry entry) {
  count(entry, 1);
  lines_[line_of(entry)].emplace(position, std::move(entry));
}

void CallQueue::count(const Entry& entry, int change) {
  on_depth_(entry.key.model->hello.model(), change);
  if (entry.kind == Kind::kNew) num_new_ += static_cast<size_t>(change);
}

}  // namespace lckv
