// FollowerLink: a rank's stream to its leader.
//
// Owner: main. One thread at a time uses it: the one that starts the rank up, then the loop's.
// Only say_failed() may be called from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "kernels/rendezvous.h"
#include "lckv/internal/v1/rank.grpc.pb.h"
#include "rpc/tls.h"
#include "worker/group/rank_identity.h"
#include "worker/group/rank_watch.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

// What the leader sends in order.
struct LeaderTurn {
  std::optional<StepPlan> plan;  // absent: it holds, idles or ends
  bool holds = false;            // sends no plan before a step that it has sent is done
  bool end = false;
};

class FollowerLink {
 public:
  // Connects and joins. Waits for a leader that is not there yet until the deadline, and for one
  // that loads its model as long as it lives. Errors: DeadlineExceeded where there is no leader,
  // the leader's own where it refuses, Unavailable where it is lost, InvalidArgument where a file
  // of `tls` cannot be used.
  static absl::StatusOr<std::unique_ptr<FollowerLink>> join(const std::string& leader,
                                                            const TlsPeerFiles& tls,
                                                            const RankIdentity& identity,
                                                            absl::Time deadline);
  ~FollowerLink();
  FollowerLink(const FollowerLink&) = delete;
  FollowerLink& operator=(const FollowerLink&) = delete;

  const std::string& life() const { return life_; }
  // The leader's, over this link, which must outlive it. To be used until ready().
  RendezvousStore store();

  // Loaded and connected: plans may come.
  absl::Status ready();
  // The next one. Unavailable where the leader is lost.
  absl::StatusOr<LeaderTurn> next();
  absl::Status done(uint64_t step, uint64_t digest);
  void say_failed(const RankFailure& failure);

 private:
  using Stream = grpc::ClientReaderWriter<internal::v1::RankFrame, internal::v1::LeaderFrame>;
  FollowerLink() = default;
  absl::Status write(const internal::v1::RankFrame& frame);
  absl::StatusOr<internal::v1::LeaderFrame> read();
  // Of the call, which is over.
  absl::Status why();
  absl::StatusOr<std::string> get(const std::string& key, absl::Time deadline);

  std::unique_ptr<internal::v1::Ranks::Stub> stub_;
  grpc::ClientContext call_;
  std::unique_ptr<Stream> stream_;
  std::string life_;
  std::mutex writing_;                 // held for every write, and while the next is set
  std::optional<absl::Status> ended_;  // the call's, once it is over
  bool has_told_end_ = false;          // the leader, when a frame could not be written any more
};

}  // namespace lckv
