// All replicas of this router: owns their links, publishes the set.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router/fleet/replica_set.h"
#include "router/fleet/session_link.h"

namespace lckv {

struct FleetOptions {
  std::vector<std::string> addresses;
  LinkOptions link;  // address is filled in per replica
};

// Owner: the router, whose pulse thread calls tick() and stop(); the rest from any thread.
class Fleet {
 public:
  // `on_change` is called after every publication, from any thread, with no lock held.
  // `on_frame_moved` counts.
  Fleet(const FleetOptions& options, std::function<void()> on_change,
        std::function<void(bool received)> on_frame_moved);

  std::shared_ptr<const ReplicaSet> snapshot();
  // Publishes a new set now.
  void refresh();
  void tick(absl::Time now);
  // Ends all sessions; true once gRPC is done with them, false where that took longer than
  // `timeout`.
  bool stop(absl::Duration timeout);

 private:
  // Streams leave a replica that asks them to, where an equal one takes them.
  void move_streams();
  absl::StatusOr<std::shared_ptr<const ModelInfo>> model_of(const internal::v1::Hello& hello);

  const std::function<void()> on_change_;
  std::vector<std::shared_ptr<SessionLink>> links_;
  std::mutex mutex_;  // guards the pointer; the set itself never changes
  std::shared_ptr<const ReplicaSet> snapshot_;
};

}  // namespace lckv
