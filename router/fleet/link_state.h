// A lasting link to one replica as a state machine without I/O: which sessions there are and which
// of them takes new work, when to connect, to beat, to let an old session be followed by another,
// to give a silent one up.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "absl/time/time.h"
#include "lckv/internal/v1/engine.pb.h"
#include "router/fleet/replica_set.h"
#include "router/fleet/sequence_sink.h"
#include "router/fleet/session_state.h"

namespace lckv {

struct LinkTimes {
  absl::Duration beat_interval = absl::Milliseconds(500);
  // Silence after which no new work is given ...
  absl::Duration unresponsive_after = absl::Milliseconds(1500);
  // ... and after which its streams move. Where frames come seldom, three times as long as between
  // two of them.
  absl::Duration lost_after = absl::Seconds(3);
  // The same for a step counter that stands still under our work while frames come.
  absl::Duration standstill_after = absl::Seconds(30);
  // At half of it a session is followed by another, which takes all new work. It ends with its last
  // sequence; at this age what it still has moves. Zero: never.
  absl::Duration max_session_age = absl::Hours(1);
  absl::Duration backoff_min = absl::Milliseconds(100);
  absl::Duration backoff_max = absl::Seconds(2);
};

// Sessions are numbered from 1 in the order they are opened. Whoever opens a session says with
// on_end() that it has ended, also where it never came about. Owner: the session link, under its
// lock. Time is an argument.
class LinkState {
 public:
  using Route = SessionState::Route;
  struct Outgoing {
    uint64_t session = 0;
    internal::v1::RouterFrame frame;
  };
  struct Turn {
    std::vector<Outgoing> beats;
    uint64_t opening = 0;   // to be connected now; 0: none
    uint64_t closing = 0;   // to be ended, and not known any more; 0: none
    bool given_up = false;  // because it was silent, or stood still
    absl::Duration silence;
    absl::Duration standstill;
    std::vector<Route> orphans;  // of the session that is closed
  };
  struct Ending {
    std::vector<Route> orphans;
    LossKind kind = LossKind::kDied;
    bool was_ready = false;
  };

  LinkState(const LinkTimes& times, uint64_t seed);

  Turn tick(absl::Time now);
  bool knows(uint64_t session) const { return find(session) != nullptr; }
  // Nothing where the session is not known any more.
  std::optional<SessionState::Received> on_frame(uint64_t session,
                                                 const internal::v1::WorkerFrame& frame,
                                                 absl::Time now);
  // The session's Hello was accepted.
  void greet(uint64_t session, std::shared_ptr<const ModelInfo> model, absl::Time now);
  Ending on_end(uint64_t session, absl::Time now);

  // Gives the submits consecutive handles and returns the first. Nothing where the current session
  // serves another model than this or lacks room.
  std::optional<uint64_t> submit(const std::shared_ptr<SequenceSink>& sink, const ModelInfo* model,
                                 std::vector<internal::v1::Submit> submits, absl::Time now,
                                 std::vector<Outgoing>& out);
  void cancel(uint64_t handle, std::vector<Outgoing>& out);
  void set_paused(uint64_t handle, bool paused, absl::Time now, std::vector<Outgoing>& out);
  // Cancels all sequences and gives them back.
  std::vector<Route> take_streams(std::vector<Outgoing>& out);
  // For good: no session is known any more.
  std::vector<Route> stop();

  uint64_t current() const;  // session; 0: none
  bool greeted() const;      // the current one is
  const std::shared_ptr<const ModelInfo>& model() const { return model_; }
  // `connected`: the current session's connection stands; of no meaning once that is greeted.
  ReplicaState state(absl::Time now, bool connected) const;
  // Fills in what is known of the replica's load.
  void describe(ReplicaView& view) const;

 private:
  struct Live {
    uint64_t number = 0;
    SessionState state;
    absl::Time opened;
  };
  using LivePtr = std::unique_ptr<Live>;
  // The session in use; its successor until that has said Hello; its predecessor until that is
  // empty.
  enum Role { kCurrent, kNext, kOld, kNumRoles };

  const LivePtr* find(uint64_t session) const;
  bool is_lost(const Live& live, absl::Time now) const;
  // As a share of what it may be.
  double age(const Live& live, absl::Time now) const;
  std::optional<Role> role_to_open(absl::Time now) const;
  // Frees the role, the next session taking the place of the current one.
  std::vector<Route> drop(Role role, absl::Time now);

  const LinkTimes times_;
  std::array<LivePtr, kNumRoles> live_;
  std::shared_ptr<const ModelInfo> model_;
  bool stopped_ = false;
  uint64_t last_session_ = 0;
  uint64_t next_handle_ = 1;
  absl::Time beat_time_ = absl::InfinitePast();
  absl::Time connect_time_ = absl::InfinitePast();
  absl::Duration backoff_;
  std::minstd_rand jitter_;
};

}  // namespace lckv
