// The router's lasting link to one replica: connects, reconnects, beats, submits and delivers.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"
#include "lckv/internal/v1/engine.grpc.pb.h"
#include "router/fleet/link_state.h"
#include "router/fleet/replica_set.h"
#include "router/fleet/sequence_sink.h"
#include "router/fleet/session.h"

namespace lckv {

struct LinkOptions {
  std::string address;
  std::string router_id;
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // null: plaintext
  std::string server_name;  // that the certificate must have; empty: the address
  LinkTimes times;
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

  // Ends the sessions for good and hands all their sequences back as `kind`.
  void stop(LossKind kind, const absl::Status& why);
  // No session is open any more. Who closes the link keeps it until nobody else does.
  bool is_idle();

 private:
  using Route = LinkState::Route;
  struct Connection {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<internal::v1::Engine::Stub> stub;
    std::shared_ptr<Session> session;
  };
  using ConnectionPtr = std::shared_ptr<Connection>;

  void open(uint64_t session);
  void on_frame(uint64_t session, const internal::v1::WorkerFrame& frame);
  void on_end(uint64_t session, const grpc::Status& status);
  void set_paused(uint64_t handle, bool paused);
  static void end_routes(const std::vector<Route>& routes, LossKind kind, const absl::Status& why);
  // With the lock held:
  void send(std::vector<LinkState::Outgoing> frames);
  // The state knows the session no more.
  ConnectionPtr retire(uint64_t session);
  ConnectionPtr current() const;

  const LinkOptions options_;
  const LinkHandlers handlers_;

  std::mutex mutex_;  // guards what follows
  LinkState state_;
  std::map<uint64_t, ConnectionPtr> connections_;  // by session
  // Of sessions that ended. The last channel of a process may not go on a thread of gRPC's, which
  // it would wait for: tick() lets those go that nobody else holds.
  std::vector<std::shared_ptr<grpc::Channel>> retired_;
  int num_open_ = 0;  // sessions and calls that gRPC is not done with
};

}  // namespace lckv
