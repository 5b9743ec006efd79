// lckv.v1.Models.
#pragma once

#include "lckv/v1/models.grpc.pb.h"
#include "router/access.h"
#include "router/fleet/fleet.h"

namespace lckv {

// Owner: the router. gRPC's threads. Answers from the published replica set alone.
class ModelsService final : public v1::Models::CallbackService {
 public:
  ModelsService(Fleet& fleet, const Access& access) : fleet_(fleet), access_(access) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::Model* response) override;

 private:
  Fleet& fleet_;
  const Access& access_;
};

// Every model that is expected or that some replica has introduced, once, by name; of one without
// replicas the name alone.
v1::ListModelsResponse list_models(const ReplicaSet& set);

}  // namespace lckv
