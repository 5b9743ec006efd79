// One Generate call: the relay between its client and its replica, driven by gRPC's callbacks.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "grpcpp/alarm.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "lckv/v1/inference.pb.h"
#include "router/access.h"
#include "router/call_queue.h"
#include "router/call_registry.h"
#include "router/fleet/fleet.h"
#include "router/fleet/sequence_sink.h"
#include "router/relay.h"
#include "router/retry_budget.h"
#include "router/router_metrics.h"
#include "router/tenants.h"
#include "rpc/logging.h"
#include "rpc/trace_span.h"

namespace lckv {

struct CallOptions {
  RelayOptions relay;
  size_t max_concurrent_requests = 4096;
  // Calls that may wait for a first replica of their model, and for how long.
  size_t max_parked = 1024;
  absl::Duration max_wait_for_model = absl::ZeroDuration();
  // How long one write may wait for a client that does not read.
  absl::Duration slow_reader_timeout = absl::Seconds(30);
};

// What calls share; the router owns it all and outlives them.
struct CallEnvironment {
  CallOptions options;
  Fleet& fleet;
  CallQueue& queue;
  CallRegistry& registry;
  RouterMetrics& metrics;
  RetryBudget& retries;
  const Access& access;
  TenantGate& tenants;
  RequestLog& log;
  std::atomic<size_t> num_parked = 0;
  std::atomic<uint64_t> next_ticket = 0;
};

// Ownership: keeps itself alive from start() until gRPC's OnDone; queue, registry and links hold it
// too. Any thread may come in: client events, frames of the replica's link, the queue, the router's
// pulse. One lock per call guards everything; it is taken before the link's lock, never after, and
// is not held while gRPC, the queue or the registry is called. Whoever changes the relay calls
// pump() afterwards, which starts the one write or the end that is due.
class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateEvent>,
                           public SequenceSink,
                           public WaitingCall,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  GenerateCall(CallEnvironment& environment, grpc::CallbackServerContext& context);

  void start(const v1::GenerateRequest& request);
  // Looks after a client that does not read, and whether what the call waits for is there.
  void tick(absl::Time now);
  // Ends the call with an error, after what waits for the reader.
  void end(const absl::Status& why);

  void on_seated(ChoiceAttempt attempt) override;
  void on_update(ChoiceAttempt attempt, const SequenceUpdate& update) override;
  void on_refused(ChoiceAttempt attempt, const internal::v1::Refused& refused) override;
  void on_lost(ChoiceAttempt attempt, LossKind kind, const absl::Status& why) override;
  Assignment assign(const ReplicaView& replica, const std::vector<uint32_t>& choices) override;
  void expire(const absl::Status& why) override { end(why); }

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class Phase { kOpen, kFinished };  // kFinished: Finish was called or is about to be

  // A call of a model that is expected, but of which nothing is known yet.
  struct Parked {
    v1::GenerateRequest request;
    absl::Time until;
    absl::Status failure;  // ends the wait
    bool waking = false;
  };

  void begin(const v1::GenerateRequest& request);
  bool park(const v1::GenerateRequest& request);
  void look_at_parked(absl::Time now);
  void wake();
  absl::StatusOr<GenerateSpec> check(const v1::GenerateRequest& request);
  absl::StatusOr<std::shared_ptr<const ModelInfo>> model_for(const v1::GenerateRequest& request);
  absl::Status admit(GenerateSpec& spec);
  void refuse(const absl::Status& why);
  void pump();
  bool give_up_on_reader(absl::Time now);
  void note_caller_gone();
  // With the lock held, all but the last:
  void run_commands();
  bool place(const ReplicaView& replica, const std::vector<uint32_t>& choices);
  CallQueue::Entry entry_for(std::vector<uint32_t> choices) const;
  std::vector<CallQueue::Entry> entries_for_needs();
  std::vector<std::shared_ptr<SessionLink>> links() const;
  void enqueue(CallQueue::Entry entry);
  void note_tokens(uint32_t choice, absl::Time now);
  void take_trace();
  void close(const absl::Status& status);
  LogFields describe() const;
  void count_rejected(const absl::Status& status, bool slow);

  CallEnvironment& environment_;
  grpc::CallbackServerContext& context_;  // valid until OnDone
  const absl::Time arrival_;

  std::mutex mutex_;  // guards what follows
  std::string request_id_;
  std::string parent_span_id_;         // the caller's
  std::optional<TraceSpan> trace_;     // ours; nothing where the caller sent none
  std::string replica_;                // address of the last that took a choice
  std::string model_name_;             // of a served model, else empty
  std::optional<std::string> tenant_;  // that let the call in
  bool lacks_model_ = false;           // as far as check() came
  std::optional<Parked> parked_;
  absl::Time parked_until_ = absl::InfiniteFuture();  // of the first time
  std::unique_ptr<grpc::Alarm> alarm_;
  std::unique_ptr<Relay> relay_;  // null: refused before it could be made, or parked
  // By choice, at its newest replica.
  struct Seat {
    std::shared_ptr<SessionLink> link;  // null: at none yet
    uint64_t handle = 0;
    bool resuming = false;  // its next token ends a gap
  };
  std::vector<Seat> seats_;
  uint64_t ticket_ = 0;
  uint32_t num_retries_ = 0;
  std::vector<absl::Time> token_times_;
  Phase phase_ = Phase::kOpen;
  bool placed_ = false;
  bool waited_ = false;
  absl::Status cancelled_;  // not OK: by the client or its deadline
  bool slow_ = false;
  bool writing_ = false;
  bool write_issued_ = false;
  absl::Time write_time_;
  v1::GenerateEvent outgoing_;  // the write's own while writing_
  std::shared_ptr<GenerateCall> self_;
};

}  // namespace lckv
