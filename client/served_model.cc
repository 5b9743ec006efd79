#include "client/served_model.h"

#include "absl/strings/str_cat.h"
#include "lckv/v1/models.grpc.pb.h"
#include "rpc/status_mapping.h"

namespace lckv {

absl::StatusOr<v1::Model> find_model(const std::shared_ptr<grpc::Channel>& channel,
                                     const ConnectionOptions& options, const std::string& name) {
  const auto stub = v1::Models::NewStub(channel);
  grpc::ClientContext call;
  set_deadline(call, options);
  if (!name.empty()) {
    v1::GetModelRequest request;
    request.set_name(name);
    v1::Model model;
    if (const grpc::Status status = stub->GetModel(&call, request, &model); !status.ok()) {
      return to_absl_status(status);
    }
    return model;
  }
  v1::ListModelsResponse response;
  if (const grpc::Status status = stub->ListModels(&call, {}, &response); !status.ok()) {
    return to_absl_status(status);
  }
  if (response.models_size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the router serves ", response.models_size(), " models: name one by --model"));
  }
  return response.models(0);
}

}  // namespace lckv
