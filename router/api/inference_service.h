// lckv.v1.Inference.
#pragma once

#include "lckv/v1/inference.grpc.pb.h"
#include "router/api/generate_call.h"

namespace lckv {

// Owner: the router. gRPC's threads.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(CallEnvironment& environment) : environment_(environment) {}

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;

 private:
  absl::Status check_right(const grpc::CallbackServerContext& context) const;
  absl::Status tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse& response,
                        std::string& model);
  absl::Status detokenize(const v1::DetokenizeRequest& request, v1::DetokenizeResponse& response,
                          std::string& model);
  grpc::ServerUnaryReactor* finish(grpc::CallbackServerContext& context, const absl::Status& status,
                                   const char* method, const std::string& model);

  CallEnvironment& environment_;
};

}  // namespace lckv
