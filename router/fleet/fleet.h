// All replicas of this router: owns their links, publishes the set.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "router/fleet/discovery.h"
#include "router/fleet/link_choice.h"
#include "router/fleet/replica_set.h"
#include "router/fleet/session_link.h"

namespace lckv {

struct FleetOptions {
  LinkOptions link;  // address and server name are filled in per replica
  // Without TLS only replicas on this machine may be spoken to, unless this is set.
  bool allow_plaintext = false;
};

// One link per candidate, except where two lead to one replica: then the later link is closed, and
// opened again when the first is lost. A link whose candidate is withdrawn stays as long as its
// session does.
// Owner: the router, whose pulse thread calls tick() and stop(); the rest from any thread.
class Fleet {
 public:
  // `on_change` is called after every change, from any thread, with no lock held.
  // `on_frame_moved` counts.
  Fleet(const FleetOptions& options, std::function<void()> on_change,
        std::function<void(bool received)> on_frame_moved);

  // From now on these are the addresses where replicas may be.
  void set_candidates(Candidates candidates);

  // As it is now. Built when it is asked for: every frame of every replica changes it.
  std::shared_ptr<const ReplicaSet> snapshot();
  // The next snapshot is built anew.
  void refresh() { stale_ = true; }
  void tick(absl::Time now);
  // Ends all sessions; true once gRPC is done with them, false where that took longer than
  // `timeout`.
  bool stop(absl::Duration timeout);

 private:
  struct Place {
    Candidate candidate;
    std::shared_ptr<SessionLink> link;  // null: closed, for the replica is reached another way
    std::string replica_id;             // of the replica that closed it
    bool withdrawn = false;
  };

  // Streams leave a replica that asks them to, where an equal one takes them.
  void move_streams();

  std::shared_ptr<SessionLink> make_link(const Candidate& candidate);
  absl::StatusOr<std::shared_ptr<const ModelInfo>> model_of(const internal::v1::Hello& hello,
                                                            const std::string& expected_model);
  // With the lock held:
  void renew();
  std::vector<std::shared_ptr<SessionLink>> close_superfluous();

  const FleetOptions options_;
  const std::function<void()> on_change_;
  const std::function<void(bool)> on_frame_moved_;
  std::mutex mutex_;  // guards what follows; the set itself never changes
  std::vector<Place> places_;
  std::vector<std::shared_ptr<SessionLink>> closing_;  // until gRPC is done with them
  std::vector<std::string> expected_models_;
  LinkChoice choice_;
  bool stopped_ = false;
  std::shared_ptr<const ReplicaSet> snapshot_;
  std::atomic<bool> stale_ = false;
};

}  // namespace lckv
