#include "router/call_queue.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

absl::Status queue_full(absl::string_view why) {
  return with_retry(absl::ResourceExhaustedError(why), absl::Seconds(1));
}

absl::Status nothing_ready() {
  return with_retry(absl::UnavailableError("no replica of this model is ready"), absl::Seconds(1));
}

std::string line_of(const RoutingKey& key) {
  return absl::StrCat(key.model->hello.model(), "\n", key.fingerprint);
}

}  // namespace

CallQueue::CallQueue(CallQueueOptions options, Fleet& fleet, const RoutingPolicy& policy,
                     std::function<void(const std::string& model, int change)> on_depth)
    : options_(options), fleet_(fleet), policy_(policy), on_depth_(std::move(on_depth)) {}

void CallQueue::add(Entry entry) {
  const std::shared_ptr<WaitingCall> call = entry.call;
  const std::string name = line_of(entry.key);
  const RoutingKey key = entry.key;
  Position position;
  {
    std::lock_guard lock(mutex_);
    position = {-int64_t{entry.priority}, next_arrival_++};
    put_back(name, position, std::move(entry));
  }
  dispatch();
  const bool served = is_served(key);
  bool expired = false;
  {
    std::lock_guard lock(mutex_);
    const auto line = lines_.find(name);
    if (line == lines_.end()) return;
    const auto it = line->second.find(position);
    if (it == line->second.end()) return;
    expired = num_calls_ > options_.max_calls ||
              (!served && options_.max_wait_for_ready <= absl::ZeroDuration());
    if (expired) take(line, it);
  }
  if (expired) call->expire(served ? queue_full("all queues are full") : nothing_ready());
}

void CallQueue::remove(const WaitingCall* call) {
  std::lock_guard lock(mutex_);
  for (auto line = lines_.begin(); line != lines_.end(); ++line) {
    for (auto it = line->second.begin(); it != line->second.end(); ++it) {
      if (it->second.call.get() != call) continue;
      take(line, it);
      return;
    }
  }
}

void CallQueue::dispatch() {
  std::set<std::string> stuck;
  while (place_next(stuck)) {
  }
}

// Offers the first call of some line that is not stuck to a replica; false where there is none.
bool CallQueue::place_next(std::set<std::string>& stuck) {
  const auto set = fleet_.snapshot();
  std::optional<Entry> entry;
  std::string name;
  Position position;
  size_t pick = 0;
  {
    std::lock_guard lock(mutex_);
    const auto line = std::find_if(lines_.begin(), lines_.end(),
                                   [&](const auto& l) { return !stuck.contains(l.first); });
    if (line == lines_.end()) return false;
    name = line->first;
    const auto first = line->second.begin();
    const auto picked = policy_.pick(first->second.key, *set);
    if (!picked) {
      stuck.insert(name);
      return true;
    }
    pick = *picked;
    position = first->first;
    entry = take(line, first);
  }
  const auto assignment = entry->call->assign(set->replicas[pick]);
  // Before the next pick, so that it counts these submits, or sees what the set was behind with.
  fleet_.refresh();
  if (assignment == WaitingCall::Assignment::kNotTaken) {
    std::lock_guard lock(mutex_);
    put_back(name, position, *std::move(entry));
  }
  return true;
}

void CallQueue::tick(absl::Time now) {
  std::vector<std::pair<Entry, absl::Status>> expired;
  const auto set = fleet_.snapshot();
  {
    std::lock_guard lock(mutex_);
    for (auto line = lines_.begin(); line != lines_.end();) {
      auto next_line = std::next(line);
      const RoutingKey key = line->second.begin()->second.key;
      const bool served = std::any_of(set->replicas.begin(), set->replicas.end(),
                                      [&](const ReplicaView& r) { return serves(key, r); });
      for (auto it = line->second.begin(); it != line->second.end();) {
        auto next = std::next(it);
        const absl::Duration waited = now - it->second.arrival;
        const bool is_last = line->second.size() == 1;
        if (!served && waited > options_.max_wait_for_ready) {
          expired.emplace_back(take(line, it), nothing_ready());
        } else if (waited > options_.max_wait) {
          expired.emplace_back(take(line, it), queue_full("waited too long for a replica"));
        } else {
          it = next;
          continue;
        }
        if (is_last) break;  // the line went with its last call
        it = next;
      }
      line = next_line;
    }
  }
  for (auto& [entry, why] : expired) entry.call->expire(why);
}

bool CallQueue::is_served(const RoutingKey& key) {
  const auto set = fleet_.snapshot();
  return std::any_of(set->replicas.begin(), set->replicas.end(),
                     [&](const ReplicaView& replica) { return serves(key, replica); });
}

CallQueue::Entry CallQueue::take(std::map<std::string, Line>::iterator line, Line::iterator entry) {
  Entry taken = std::move(entry->second);
  line->second.erase(entry);
  if (line->second.empty()) lines_.erase(line);
  --num_calls_;
  on_depth_(taken.key.model->hello.model(), -1);
  return taken;
}

void CallQueue::put_back(const std::string& name, Position position, Entry entry) {
  on_depth_(entry.key.model->hello.model(), 1);
  lines_[name].emplace(position, std::move(entry));
  ++num_calls_;
}

}  // namespace lckv
