// Calls that no replica has taken yet.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router/fleet/fleet.h"
#include "router/routing/routing_policy.h"

namespace lckv {

// A call as the queue sees it. The queue holds it by shared_ptr and calls it with no lock held.
class WaitingCall {
 public:
  enum class Assignment {
    kTaken,     // its sequences are in the replica's session
    kNotTaken,  // the replica had changed meanwhile; the call waits on
    kGone,      // the call has ended
  };
  virtual ~WaitingCall() = default;
  virtual Assignment assign(const ReplicaView& replica) = 0;
  virtual void expire(const absl::Status& why) = 0;
};

struct CallQueueOptions {
  size_t max_calls = 1024;
  // How long a call may wait for credit, and how long for any replica of its model to be ready.
  absl::Duration max_wait = absl::Minutes(5);
  absl::Duration max_wait_for_ready = absl::ZeroDuration();
};

// Owner: the router. Thread-safe. First come, first served within a priority; a call whose turn has
// not come never overtakes one with the same needs.
class CallQueue {
 public:
  CallQueue(CallQueueOptions options, Fleet& fleet, const RoutingPolicy& policy,
            std::function<void(const std::string& model, int change)> on_depth);

  struct Entry {
    std::shared_ptr<WaitingCall> call;
    RoutingKey key;
    int32_t priority = 0;
    absl::Time arrival;
  };

  // Places the call at once, lets it wait, or expires it: ResourceExhausted where the queue is
  // full, Unavailable where no replica is ready.
  void add(Entry entry);
  // A call that has ended; no effect where it is not here.
  void remove(const WaitingCall* call);
  // Places what can be placed. After every change of the replica set.
  void dispatch();
  void tick(absl::Time now);

 private:
  // Higher priorities first, then in order of arrival.
  using Position = std::pair<int64_t, uint64_t>;
  // Calls of one line have the same needs: model and fingerprint.
  using Line = std::map<Position, Entry>;

  bool place_next(std::set<std::string>& stuck);
  bool is_served(const RoutingKey& key);
  Entry take(std::map<std::string, Line>::iterator line, Line::iterator entry);
  void put_back(const std::string& name, Position position, Entry entry);

  const CallQueueOptions options_;
  Fleet& fleet_;
  const RoutingPolicy& policy_;
  const std::function<void(const std::string&, int)> on_depth_;

  std::mutex mutex_;  // guards what follows
  std::map<std::string, Line> lines_;
  size_t num_calls_ = 0;
  uint64_t next_arrival_ = 0;
};

}  // namespace lckv
