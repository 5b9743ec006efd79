// lckv.v1.Admin.
#pragma once

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lckv/v1/admin.grpc.pb.h"
#include "router/access.h"
#include "router/fleet/fleet.h"

namespace lckv {

// Owner: the router. gRPC's threads. Lists the published replica set; draining is
// asked of the replica's leader.
class AdminService final : public v1::Admin::CallbackService {
 public:
  AdminService(Fleet& fleet, const Access& access) : fleet_(fleet), access_(access) {}

  grpc::ServerUnaryReactor* ListReplicas(grpc::CallbackServerContext* context,
                                         const v1::ListReplicasRequest* request,
                                         v1::ListReplicasResponse* response) override;
  grpc::ServerUnaryReactor* DrainReplica(grpc::CallbackServerContext* context,
                                         const v1::DrainReplicaRequest* request,
                                         v1::Replica* response) override;
  grpc::ServerUnaryReactor* UndrainReplica(grpc::CallbackServerContext* context,
                                           const v1::UndrainReplicaRequest* request,
                                           v1::Replica* response) override;

 private:
  grpc::ServerUnaryReactor* refuse_without_right(grpc::CallbackServerContext& context) const;
  static grpc::ServerUnaryReactor* refuse(grpc::CallbackServerContext& context,
                                          const absl::Status& why);
  grpc::ServerUnaryReactor* ask(grpc::CallbackServerContext& context,
                                const internal::v1::DrainRequest& request, v1::Replica& response);

  Fleet& fleet_;
  const Access& access_;
};

// In the order of --workers; a replica that has never said Hello has an address and a state only.
v1::ListReplicasResponse list_replicas(const ReplicaSet& set, absl::Time now);

}  // namespace lckv
