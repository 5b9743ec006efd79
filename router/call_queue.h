// What no replica has taken yet: calls, and choices of calls that have lost their replica.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router/fleet/replica_set.h"
#include "router/routing/routing_policy.h"

namespace lckv {

// A call as the queue sees it. The queue holds it by shared_ptr and calls it with no lock held.
class WaitingCall {
 public:
  enum class Assignment {
    kTaken,     // the choices are in the replica's session
    kMoved,     // the replica will not do for them; they were added again, with what they need
    kNotTaken,  // the replica had changed meanwhile; they wait on
    kGone,      // the call has ended
  };
  virtual ~WaitingCall() = default;
  // Some of an entry's choices, or all.
  virtual Assignment assign(const ReplicaView& replica, const std::vector<uint32_t>& choices) = 0;
  virtual void expire(const absl::Status& why) = 0;
};

struct CallQueueOptions {
  size_t max_calls = 1024;  // that are new
  // How long a call may wait for credit, and how long for any replica of its model to be ready.
  absl::Duration max_wait = absl::Minutes(5);
  absl::Duration max_wait_for_ready = absl::ZeroDuration();
  // The latter for what a replica had taken before.
  absl::Duration resume_timeout = absl::Seconds(60);
};

// Where the queue finds replicas; the fleet's, or a test's.
struct ReplicaSource {
  std::function<std::shared_ptr<const ReplicaSet>()> snapshot;
  std::function<void()> refresh;  // the next snapshot is of now
};

// Owner: the router. Thread-safe. Streams that go on come first, whatever their priority; then
// higher priorities, then earlier arrivals. What has not come to its turn never overtakes another
// with the same needs, but what is delayed is not in the row until its time.
class CallQueue {
 public:
  enum class Kind : uint8_t {
    kResume,  // a stream that goes on
    kRetry,   // a call that was taken before, but has delivered nothing
    kNew,
  };
  struct Entry {
    std::shared_ptr<WaitingCall> call;
    RoutingKey key;
    std::vector<uint32_t> choices;
    Kind kind = Kind::kNew;
    int32_t priority = 0;
    absl::Time arrival;                            // of the call
    absl::Time since;                              // it needs a replica
    absl::Time not_before = absl::InfinitePast();  // delayed until then
    absl::Time deadline = absl::InfiniteFuture();  // of the call
  };

  CallQueue(CallQueueOptions options, ReplicaSource source, const RoutingPolicy& policy,
            std::function<void(const std::string& model, int change)> on_depth);

  // Places the entry at once, lets it wait, or expires it: ResourceExhausted where the queue is
  // full, DeadlineExceeded where a new call is not likely to end in time, Unavailable where no
  // replica is ready for it.
  void add(Entry entry);
  // All entries of a call that has ended; no effect where none is here.
  void remove(const WaitingCall* call);
  // Places what can be placed. After every change of the replica set.
  void dispatch();
  void tick(absl::Time now);

 private:
  using Position = std::tuple<bool, int64_t, absl::Time, uint64_t>;
  // Entries of one line have the same needs: model, its limits and fingerprint.
  using Line = std::map<Position, Entry>;
  // Lines of streams that go on come before the others.
  using LineName = std::pair<bool, std::string>;
  using Lines = std::map<LineName, Line>;
  // An entry out of its line, some of whose choices a replica is to take.
  struct Offer {
    Entry entry;
    Position position;
    uint64_t number;
    size_t replica;  // of the set
    uint32_t num_choices;
  };

  static LineName line_of(const Entry& entry);
  bool place_next(std::set<LineName>& stuck);
  std::optional<Offer> take_offer(Lines::iterator line, const ReplicaSet& set);
  bool is_served(const RoutingKey& key);
  // Why a new call is not to wait, or to be placed, at all; OK where it is.
  absl::Status refusal(const Entry& entry);
  // Why the entry may not wait on; OK where it may.
  absl::Status overdue(const Entry& entry, bool served, absl::Time now) const;
  Entry take(Lines::iterator line, Line::iterator entry);
  Position put(Entry entry);
  void put_back(Position position, Entry entry);
  bool release_delayed(absl::Time now);
  void count(const Entry& entry, int change);

  const CallQueueOptions options_;
  const ReplicaSource source_;
  const RoutingPolicy& policy_;
  const std::function<void(const std::string&, int)> on_depth_;

  std::mutex mutex_;  // guards what follows
  Lines lines_;
  std::multimap<absl::Time, Entry> delayed_;
  std::map<uint64_t, const WaitingCall*> offered_;  // offers that are being made
  size_t num_new_ = 0;
  uint64_t next_number_ = 0;
};

}  // namespace lckv
