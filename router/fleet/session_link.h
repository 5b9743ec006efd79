// The router's lasting link to one replica: connects, reconnects, beats, submits and delivers.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"
#include "lckv/internal/v1/engine.grpc.pb.h"
#include "router/fleet/replica_set.h"
#include "router/fleet/sequence_sink.h"
#include "router/fleet/session.h"
#include "router/fleet/session_state.h"

namespace lckv {

struct LinkOptions {
  std::string address;
  std::string router_id;
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // null: plaintext
  std::string server_name;  // that the certificate must have; empty: the address
  absl::Duration beat_interval = absl::Milliseconds(500);
  // Silence after which no new work is given ...
  absl::Duration unresponsive_after = absl::Milliseconds(1500);
  // ... and after which its streams move. Where steps are long, three of them count.
  absl::Duration lost_after = absl::Seconds(3);
  // The same for a step counter that stands still under our work while frames come.
  absl::Duration standstill_after = absl::Seconds(30);
  // A session so old is followed by another, which takes all new work; it ends with its last
  // sequence. Zero: never.
  absl::Duration max_session_age = absl::ZeroDuration();
  absl::Duration backoff_min = absl::Milliseconds(100);
  absl::Duration backoff_max = absl::Seconds(2);
};

struct LinkHandlers {
  std::function<void()> on_change;  // state or load has changed; any thread, no lock held
  // Turns a Hello into a model, sharing what other links know.
  std::function<absl::StatusOr<std::shared_ptr<const ModelInfo>>(const internal::v1::Hello&)>
      on_hello;
  std::function<void(bool received)> on_frame_moved;  // counts frames
};

// Owner: the fleet; calls hold it by shared_ptr too. Thread-safe. One lock, under which neither
// gRPC nor a sink is called. Frames of one session are delivered in order by one thread at a time.
// tick() drives all that time decides.
class SessionLink : public std::enable_shared_from_this<SessionLink> {
 public:
  SessionLink(LinkOptions options, LinkHandlers handlers);

  void tick(absl::Time now);
  ReplicaView view();

  // Queues one submit per sequence, or nothing: then the session does not serve `model` any more or
  // lacks credit. Returns the handle of the first; the others follow it. flush() sends, also
  // cancel, pause and unpause.
  std::optional<uint64_t> submit(const std::shared_ptr<SequenceSink>& sink, const ModelInfo* model,
                                 std::vector<internal::v1::Submit> submits);
  void cancel(
      uint64_t handle);  // nothing is delivered for it afterwards but what is being delivered now
  void pause(uint64_t handle) { set_paused(handle, true); }
  void unpause(uint64_t handle) { set_paused(handle, false); }
  void flush();
  // Cancels all sequences here and hands them back as kMoved.
  void move_streams();

  // Asks the leader to drain or undrain. `done` comes once, on a thread of gRPC's.
  void drain(const internal::v1::DrainRequest& request, absl::Time deadline,
             std::function<void(const absl::Status&, const internal::v1::Load&)> done);

  // Ends the sessions for good and all their sequences with `why`.
  void stop(const absl::Status& why);
  // No session is open any more. Who closes the link keeps it until nobody else does.
  bool is_idle();

 private:
  using Route = SessionState::Route;
  // A connection of its own, its session, and what that holds.
  struct Live {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<internal::v1::Engine::Stub> stub;
    std::shared_ptr<Session> session;
    SessionState state;
    absl::Time opened;
  };
  using LivePtr = std::shared_ptr<Live>;
  // The session in use; its successor until that has said Hello; its predecessor until that is
  // empty.
  enum Role { kCurrent, kNext, kOld, kNumRoles };

  void open(Role role, absl::Time now);
  void on_frame(const Session* session, const internal::v1::WorkerFrame& frame);
  void on_end(const Session* session, const grpc::Status& status);
  void set_paused(uint64_t handle, bool paused);
  void send(Live& live, internal::v1::RouterFrame frame);
  LivePtr* find(const Session* session);
  void note_hello(Role role, std::shared_ptr<const ModelInfo> model, absl::Time now);
  bool is_lost(const Live& live, absl::Time now) const;
  // Frees the role, the next session taking the place of the current one.
  void drop(Role role, absl::Time now, std::vector<Route>& orphans);
  static void end_routes(const std::vector<Route>& routes, LossKind kind, const absl::Status& why);
  ReplicaState state(absl::Time now);

  const LinkOptions options_;
  const LinkHandlers handlers_;

  std::mutex mutex_;  // guards what follows
  std::array<LivePtr, kNumRoles> live_;
  // Of sessions that ended. The last channel of a process may not go on a thread of gRPC's, which
  // it would wait for: tick() lets those go that nobody else holds.
  std::vector<std::shared_ptr<grpc::Channel>> retired_;
  int num_open_ = 0;  // sessions and calls that gRPC is not done with
  bool stopped_ = false;
  std::shared_ptr<const ModelInfo> model_;
  uint64_t next_handle_ = 1;
  absl::Time beat_time_ = absl::InfinitePast();
  absl::Time connect_time_ = absl::InfinitePast();
  absl::Duration backoff_;
  std::minstd_rand jitter_;
};

}  // namespace lckv
