// EngineService: the sessions of all routers on one side, the engine's mailbox and reports on the
// other.
//
// Sessions opened while the model loads wait for serve(). Owner: main. gRPC's threads bring frames,
// the engine's thread reports; one lock guards what they share and is held for table look-ups only:
// never while gRPC or the mailbox is called.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lckv/internal/v1/engine.grpc.pb.h"
#include "worker/engine/engine.h"
#include "worker/service/seat_rate.h"
#include "worker/service/sequence_log.h"
#include "worker/service/session.h"
#include "worker/service/step_frames.h"
#include "worker/service/submit_check.h"
#include "worker/service/worker_metrics.h"

namespace lckv {

struct ServiceOptions {
  SessionOptions session;
  int32_t max_sessions = 64;
  absl::Duration drain_grace = absl::Seconds(30);  // where a drain call names none
  int32_t max_waiting = 1024;  // the scheduler's queue, which the sessions' credit divides
  absl::Duration beat_interval = absl::Milliseconds(500);
};

class EngineService final : public internal::v1::Engine::CallbackService {
 public:
  using Post = std::function<absl::Status(EngineCommand)>;

  // `metrics` and `log` outlive the service. Without a log nothing is said of sequences that end.
  EngineService(const ServiceOptions& options, WorkerMetrics* metrics, RequestLog* log = nullptr);

  grpc::ServerBidiReactor<internal::v1::RouterFrame, internal::v1::WorkerFrame>* Session(
      grpc::CallbackServerContext* call) override;

  // The model is loaded: every session gets `hello`, and submits go to `post`. Once.
  void serve(internal::v1::Hello hello, SubmitLimits limits, Post post);
  // For operators: drains as drain() does, after the request's grace, or ends that.
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* call,
                                  const internal::v1::DrainRequest* request,
                                  internal::v1::DrainResponse* response) override;

  // No submit is taken from now on, and the routers are told; from `move_time` on also that streams
  // which can go on at another replica are to leave. For good: no call undoes it.
  void drain(absl::Time move_time);
  // Ends every session behind what it was sent, and with it its sequences; new ones are refused.
  void close();
  // Sequences taken that are not cancelled and whose end their session was not given yet.
  size_t num_sequences() const;
  // How long work that could go on has waited without a step or, with no work, the loop without a
  // turn.
  absl::Duration step_age(absl::Time now) const;

  // The engine's sink.
  void report(const StepReport& report);

 private:
  // A session and what it has here.
  struct Link {
    std::shared_ptr<lckv::Session> session;
    std::string router;        // whose it is; empty until it is opened
    bool greeted = false;      // Hello is queued: other frames may follow
    bool missed_news = false;  // a load that all are told came before
    bool had_credit = true;    // as the router was told last
    uint64_t num_read = 0;     // submits
    uint64_t num_counted = 0;  // of them: in the last report's load, or ended
    std::unordered_map<uint64_t, SequenceId> handles;  // of live sequences
  };
  // One that the engine has.
  struct Sequence {
    uint64_t session = 0;
    uint64_t handle = 0;
    std::shared_ptr<const SequenceSpec> spec;
    SequenceTimes times;
    bool paused = false;
  };

  absl::Status take(const std::shared_ptr<lckv::Session>& session,
                    const internal::v1::RouterFrame& frame);
  void greet(const std::vector<std::shared_ptr<lckv::Session>>& sessions);
  absl::Status submit(const std::shared_ptr<lckv::Session>& session,
                      const internal::v1::Submit& submit);
  void cancel(uint64_t session, uint64_t handle);
  void pause(uint64_t session, uint64_t handle, bool paused);
  void refuse(const std::shared_ptr<lckv::Session>& session, uint64_t handle,
              const absl::Status& status);
  void forget_session(uint64_t session);
  // A cancel that the mailbox has no room for is tried again with the next report.
  void post_cancels(std::vector<SequenceId> sequences);

  // With the lock held:
  void count(SequenceId sequence);
  void erase(SequenceId sequence);
  void log_end(const SequenceEnd& end);
  void drop(SequenceId sequence, absl::string_view reason);
  void sort_events(const StepReport& report, absl::Time now,
                   std::unordered_map<uint64_t, StepFrames>& frames);
  void sort_event(const SequenceEvent& event, absl::Time now, StepFrames& frames);
  internal::v1::Load load_of(const Link& link) const;

  const ServiceOptions options_;
  WorkerMetrics* const metrics_;
  RequestLog* const log_;

  mutable std::mutex mutex_;                  // guards everything below
  std::unordered_map<uint64_t, Link> links_;  // by session
  std::map<std::string, int> routers_;        // how many opened sessions each has
  std::unordered_map<SequenceId, Sequence> sequences_;
  std::set<SequenceId> uncounted_;  // posted, and not in the last report's load
  std::vector<SequenceId> unposted_cancels_;
  std::shared_ptr<const internal::v1::Hello> hello_;  // once loaded, as the next two
  std::shared_ptr<const SubmitLimits> limits_;
  Post post_;
  uint64_t last_session_ = 0;
  uint64_t last_sequence_ = 0;
  uint64_t num_posted_ = 0;  // commands
  int32_t num_paused_ = 0;
  bool draining_ = false;
  bool leaving_ = false;  // drains for good
  bool moving_ = false;
  absl::Time move_time_ = absl::InfiniteFuture();
  bool tell_all_ = false;  // the next report goes to every session
  bool telling_ = false;   // what is erased from sequences_ is on its way to its session
  bool closed_ = false;
  // Of the last report:
  uint64_t step_ = 0;
  uint64_t num_commands_ = 0;
  uint64_t num_layers_ = 0;
  absl::Duration step_time_;
  SchedulerLoad load_;
  SeatRate seats_;
  absl::Time turned_ = absl::InfiniteFuture();
  absl::Time moved_ = absl::InfiniteFuture();  // when a step ran last, or no work could go on
};

}  // namespace lckv
