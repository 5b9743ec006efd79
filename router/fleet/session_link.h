// The router's lasting link to one replica: connects, reconnects, beats, submits and delivers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/security/credentials.h"
#include "lckv/internal/v1/engine.grpc.pb.h"
#include "router/fleet/replica_set.h"
#include "router/fleet/sequence_sink.h"
#include "router/fleet/session.h"

namespace lckv {

struct LinkOptions {
  std::string address;
  std::string router_id;
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // null: plaintext
  std::string server_name;  // that the certificate must have; empty: the address
  absl::Duration beat_interval = absl::Milliseconds(500);
  // Silence, or a step counter standing still under our work, after which no new work is given ...
  absl::Duration unresponsive_after = absl::Seconds(10);
  // ... and after which its streams are ended.
  absl::Duration lost_after = absl::Seconds(30);
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
// gRPC nor a sink is called. Frames of one link are delivered in order by one thread at a time.
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
  void pause(uint64_t handle);
  void unpause(uint64_t handle);
  void flush();

  // Ends the session for good and all its sequences with `why`.
  void stop(const absl::Status& why);
  // No session is open any more.
  bool is_idle();

 private:
  struct Route {
    std::shared_ptr<SequenceSink> sink;
    uint32_t choice = 0;
    bool paused = false;
  };
  struct Delivery {
    Route route;
    SequenceUpdate update;
  };

  void connect(absl::Time now);
  void on_frame(const Session* session, const internal::v1::WorkerFrame& frame);
  void on_end(const Session* session, const grpc::Status& status);
  void send(internal::v1::RouterFrame frame);
  std::vector<Delivery> sort_step(const internal::v1::Step& step);
  Route* route_of(uint64_t handle);
  std::optional<Route> take_route(uint64_t handle);
  void note_load(const internal::v1::Load& load, absl::Time now);
  void drop_session(absl::Time now, std::vector<Route>& orphans);
  static void end_routes(const std::vector<Route>& routes, const absl::Status& why);
  absl::Duration stall(absl::Time now) const;
  bool has_work() const;
  ReplicaState state(absl::Time now);

  const LinkOptions options_;
  const LinkHandlers handlers_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<internal::v1::Engine::Stub> stub_;

  std::mutex mutex_;                  // guards what follows
  std::shared_ptr<Session> session_;  // null: none, the next is due at connect_time_
  int num_open_ = 0;                  // sessions gRPC is not done with
  bool stopped_ = false;
  bool greeted_ = false;  // this session has said Hello
  std::shared_ptr<const ModelInfo> model_;
  internal::v1::Load load_;
  uint64_t num_submitted_ = 0;  // in this session
  uint64_t next_handle_ = 1;
  std::unordered_map<uint64_t, Route> routes_;
  absl::Time frame_time_;  // of the newest frame
  absl::Time step_time_;   // the step counter last moved, or work first came
  absl::Time beat_time_;
  absl::Time connect_time_;
  absl::Duration backoff_;
  std::minstd_rand jitter_;
};

}  // namespace lckv
