// LeaderGroup: the other ranks of a replica, as its leader has them: admits them, holds the
// rendezvous of the collectives, sends them every step's plan and hears what became of it.
//
// Owner: main, which calls open, admit, wait_ready and end. send() and done() come from the
// engine's thread, frames from gRPC's; one lock guards what they share.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/rendezvous.h"
#include "lckv/internal/v1/rank.grpc.pb.h"
#include "rpc/tls.h"
#include "worker/group/rank_identity.h"
#include "worker/group/rank_stream.h"
#include "worker/group/rank_watch.h"
#include "worker/scheduler/step_plan.h"

namespace grpc {
class Server;
}

namespace lckv {

class LeaderGroup final : public internal::v1::Ranks::CallbackService {
 public:
  // A rank that joined has failed or is gone: the replica cannot go on. From gRPC's threads or the
  // engine's, until end().
  using OnFailure = std::function<void(const RankFailure&)>;

  // Serves ranks on `address` (host:port; port 0: any free one). Unavailable where the address
  // cannot be had, InvalidArgument where a file of `tls` cannot be used.
  static absl::StatusOr<std::unique_ptr<LeaderGroup>> open(const std::string& address,
                                                           const TlsPeerFiles& tls,
                                                           OnFailure on_failure);
  ~LeaderGroup() override;
  LeaderGroup(const LeaderGroup&) = delete;
  LeaderGroup& operator=(const LeaderGroup&) = delete;

  uint16_t port() const { return port_; }
  // Random: what the ranks of this replica meet under.
  const std::string& life() const { return life_; }
  const RendezvousStore& store() const { return store_; }

  // Lets ranks join that fit `leader`; ranks that came before have waited. Returns when all are
  // there. Errors: FailedPrecondition where one of them does not fit, and DeadlineExceeded naming
  // those that did not come.
  absl::Status admit(const RankIdentity& leader, absl::Time deadline);
  // Until all ranks are loaded and connected. DeadlineExceeded names those that are not.
  absl::Status wait_ready(absl::Time deadline);

  // To all ranks, in the order of calls.
  void send(const StepPlan& plan);
  // No plan follows before a step that was sent is done.
  void hold();
  void idle();
  // The leader's own result of the step, to hold the ranks' against.
  void done(uint64_t step, uint64_t digest);

  // Ends streams that have not said in time who they are. Now and then, from one thread.
  void look(absl::Time now);

  // The replica ends in order: the ranks are told, and waited for until the deadline.
  void end(absl::Time deadline);

  grpc::ServerBidiReactor<internal::v1::RankFrame, internal::v1::LeaderFrame>* Join(
      grpc::CallbackServerContext* call) override;

 private:
  using Stream = std::shared_ptr<RankStream>;
  struct Member {
    Stream stream;  // null: has not joined
    bool ready = false;
    uint64_t step = 0;  // the last one it has done
  };
  struct Visitor {  // not decided upon
    Stream stream;
    absl::Time deadline;                   // for its Join
    std::optional<RankIdentity> identity;  // joined before admit()
  };
  struct Tally {  // of a step's digests
    int first_rank = 0;
    uint64_t digest = 0;
    int32_t count = 0;
  };

  explicit LeaderGroup(OnFailure on_failure);
  absl::Status take(const Stream& stream, const internal::v1::RankFrame& frame);
  absl::Status join(const Stream& stream, RankIdentity identity);
  absl::Status decide(const Stream& stream, const RankIdentity& identity);
  absl::Status answer(const Stream& stream, const std::string& key);
  void count(int rank, uint64_t step, uint64_t digest);
  void forget(const Stream& stream);
  void broadcast(const RankStream::Frame& frame);
  void report(const RankFailure& failure);
  // With the lock held:
  absl::Status admit_one(const Stream& stream, const RankIdentity& identity);
  int rank_of(const Stream& stream) const;  // -1: none
  std::string missing(bool ready) const;

  const OnFailure on_failure_;
  const RendezvousStore store_ = rendezvous_in_memory();
  const std::string life_;
  std::unique_ptr<grpc::Server> server_;
  uint16_t port_ = 0;

  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  bool admitting_ = false;
  bool running_ = false;  // all have joined
  bool ending_ = false;
  RankIdentity leader_;
  std::vector<Member> members_;  // by rank; 0 is the leader and stays empty
  std::vector<Visitor> visitors_;
  absl::Status misfit_;                // of a rank without which the replica cannot begin
  Stream refused_;                     // that rank's stream
  std::map<uint64_t, Tally> tallies_;  // of steps that not all ranks have done
};

}  // namespace lckv
