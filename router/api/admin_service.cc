#include "router/api/admin_service.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

v1::Replica::State public_state(ReplicaState state) {
  switch (state) {
    case ReplicaState::kConnecting:
      return v1::Replica::STATE_CONNECTING;
    case ReplicaState::kLoading:
      return v1::Replica::STATE_LOADING;
    case ReplicaState::kReady:
      return v1::Replica::STATE_READY;
    case ReplicaState::kDraining:
      return v1::Replica::STATE_DRAINING;
    case ReplicaState::kUnresponsive:
      return v1::Replica::STATE_UNRESPONSIVE;
    case ReplicaState::kLost:
      return v1::Replica::STATE_LOST;
  }
  return v1::Replica::STATE_UNSPECIFIED;
}

// Of an answer from a leader, which answers at once.
constexpr absl::Duration kLeaderPatience = absl::Seconds(3);

// A replica's row; one that has never said Hello has an address and a state only.
v1::Replica public_replica(const ReplicaView& view, absl::Time now) {
  v1::Replica replica;
  replica.set_address(view.address);
  replica.set_state(public_state(view.state));
  if (view.model == nullptr) return replica;
  const internal::v1::Hello& hello = view.model->hello;
  replica.set_replica_id(hello.replica_id());
  replica.set_model(hello.model());
  replica.set_fingerprint(hello.fingerprint());
  replica.set_version(hello.version());
  replica.set_tensor_parallel_size(hello.tensor_parallel_size());
  replica.set_num_sessions(view.load.num_routers());
  replica.set_num_running(view.load.num_running());
  replica.set_num_waiting(view.load.num_waiting());
  replica.set_num_free_blocks(view.load.num_free_blocks());
  replica.set_num_blocks(view.load.num_blocks());
  replica.set_last_step(view.load.step());
  replica.set_step_age_seconds(absl::ToDoubleSeconds(now - view.step_time));
  return replica;
}

}  // namespace

v1::ListReplicasResponse list_replicas(const ReplicaSet& set, absl::Time now) {
  v1::ListReplicasResponse response;
  for (const ReplicaView& view : set.replicas) {
    *response.add_replicas() = public_replica(view, now);
  }
  return response;
}

// The call's end where the caller may not make it; else null.
grpc::ServerUnaryReactor* AdminService::refuse_without_right(
    grpc::CallbackServerContext& context) const {
  const auto caller = access_.check(context.client_metadata(), Right::kAdmin);
  if (caller.ok()) return nullptr;
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(to_grpc_status(caller.status()));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::ListReplicas(grpc::CallbackServerContext* context,
                                                     const v1::ListReplicasRequest* /*request*/,
                                                     v1::ListReplicasResponse* response) {
  if (auto* refused = refuse_without_right(*context)) return refused;
  *response = list_replicas(*fleet_.snapshot(), absl::Now());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::DrainReplica(grpc::CallbackServerContext* context,
                                                     const v1::DrainReplicaRequest* request,
                                                     v1::Replica* response) {
  if (auto* refused = refuse_without_right(*context)) return refused;
  internal::v1::DrainRequest asked;
  asked.set_replica_id(request->replica_id());
  const absl::Duration grace =
      absl::Seconds(request->grace().seconds()) + absl::Nanoseconds(request->grace().nanos());
  if (grace < absl::ZeroDuration()) {
    return refuse(*context, invalid_field("grace", "is negative"));
  }
  if (request->move()) {
    asked.set_grace_seconds(0);
  } else if (request->has_grace()) {
    asked.set_grace_seconds(absl::ToDoubleSeconds(grace));
  }
  return ask(*context, asked, *response);
}

grpc::ServerUnaryReactor* AdminService::UndrainReplica(grpc::CallbackServerContext* context,
                                                       const v1::UndrainReplicaRequest* request,
                                                       v1::Replica* response) {
  if (auto* refused = refuse_without_right(*context)) return refused;
  internal::v1::DrainRequest asked;
  asked.set_replica_id(request->replica_id());
  asked.set_undrain(true);
  return ask(*context, asked, *response);
}

grpc::ServerUnaryReactor* AdminService::refuse(grpc::CallbackServerContext& context,
                                               const absl::Status& why) {
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(to_grpc_status(why));
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::ask(grpc::CallbackServerContext& context,
                                            const internal::v1::DrainRequest& request,
                                            v1::Replica& response) {
  const auto set = fleet_.snapshot();
  const auto replica =
      std::find_if(set->replicas.begin(), set->replicas.end(), [&](const ReplicaView& view) {
        return view.model != nullptr && view.model->hello.replica_id() == request.replica_id();
      });
  if (replica == set->replicas.end()) {
    return refuse(context, with_field(absl::NotFoundError("replica_id: no such replica is known"),
                                      "replica_id", "is not in ListReplicas"));
  }
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  // gRPC keeps the response until the call is finished.
  replica->link->drain(request, absl::Now() + kLeaderPatience,
                       [reactor, &response, view = *replica](const absl::Status& status,
                                                             const internal::v1::Load& load) {
                         ReplicaView told = view;
                         told.load = load;
                         told.state =
                             load.draining() ? ReplicaState::kDraining : ReplicaState::kReady;
                         if (status.ok()) response = public_replica(told, absl::Now());
                         reactor->Finish(to_grpc_status(status));
                       });
  return reactor;
}

}  // namespace lckv
