#include "router/api/admin_service.h"

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

grpc::ServerUnaryReactor* answer_unserved(grpc::CallbackServerContext& context, const char* call) {
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(to_grpc_status(unserved_field(call, "draining is not served yet")));
  return reactor;
}

}  // namespace

v1::ListReplicasResponse list_replicas(const ReplicaSet& set, absl::Time now) {
  v1::ListReplicasResponse response;
  for (const ReplicaView& view : set.replicas) {
    v1::Replica& replica = *response.add_replicas();
    replica.set_address(view.address);
    replica.set_state(public_state(view.state));
    if (view.model == nullptr) continue;
    const internal::v1::Hello& hello = view.model->hello;
    replica.set_replica_id(hello.replica_id());
    replica.set_model(hello.model());
    replica.set_fingerprint(hello.fingerprint());
    replica.set_version(hello.version());
    replica.set_tensor_parallel_size(hello.tensor_parallel_size());
    replica.set_num_sessions(view.load.num_sessions());
    replica.set_num_running(view.load.num_running());
    replica.set_num_waiting(view.load.num_waiting());
    replica.set_num_free_blocks(view.load.num_free_blocks());
    replica.set_num_blocks(view.load.num_blocks());
    replica.set_last_step(view.load.step());
    replica.set_step_age_seconds(absl::ToDoubleSeconds(now - view.step_time));
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
                                                     const v1::DrainReplicaRequest* /*request*/,
                                                     v1::Replica* /*response*/) {
  if (auto* refused = refuse_without_right(*context)) return refused;
  return answer_unserved(*context, "DrainReplica");
}

grpc::ServerUnaryReactor* AdminService::UndrainReplica(grpc::CallbackServerContext* context,
                                                       const v1::UndrainReplicaRequest* /*request*/,
                                                       v1::Replica* /*response*/) {
  if (auto* refused = refuse_without_right(*context)) return refused;
  return answer_unserved(*context, "UndrainReplica");
}

}  // namespace lckv
