#include "router/api/inference_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "router/model_directory.h"
#include "router/text/stream_detokenizer.h"
#include "rpc/status_mapping.h"

namespace lckv {

grpc::ServerWriteReactor<v1::GenerateEvent>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto call = std::make_shared<GenerateCall>(environment_, *context);
  call->start(*request);
  return call.get();  // keeps itself until OnDone
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  std::string model;
  absl::Status status = check_right(*context);
  if (status.ok()) status = tokenize(*request, *response, model);
  return finish(*context, status, "Tokenize", model);
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  std::string model;
  absl::Status status = check_right(*context);
  if (status.ok()) status = detokenize(*request, *response, model);
  return finish(*context, status, "Detokenize", model);
}

absl::Status InferenceService::check_right(const grpc::CallbackServerContext& context) const {
  return environment_.access.check(context.client_metadata(), Right::kGenerate).status();
}

absl::Status InferenceService::tokenize(const v1::TokenizeRequest& request,
                                        v1::TokenizeResponse& response, std::string& model) {
  if (request.has_chat()) return unserved_field("chat", "chat prompts are not served yet");
  if (!request.has_text()) return invalid_field("input", "text is needed");
  const auto info = find_model(*environment_.fleet.snapshot(), request.model());
  if (!info.ok()) return info.status();
  model = (*info)->hello.model();
  if ((*info)->tokenizer == nullptr) {
    return invalid_field("text", "this model is served without a tokenizer");
  }
  const auto ids = (*info)->tokenizer->encode(request.text());
  if (!ids.ok()) return ids.status();
  response.mutable_ids()->Add(ids->begin(), ids->end());
  return absl::OkStatus();
}

absl::Status InferenceService::detokenize(const v1::DetokenizeRequest& request,
                                          v1::DetokenizeResponse& response, std::string& model) {
  const auto info = find_model(*environment_.fleet.snapshot(), request.model());
  if (!info.ok()) return info.status();
  model = (*info)->hello.model();
  if ((*info)->tokenizer == nullptr) {
    return invalid_field("ids", "this model is served without a tokenizer");
  }
  for (int i = 0; i < request.ids_size(); ++i) {
    if (request.ids(i) < (*info)->hello.vocabulary_size()) continue;
    return invalid_field(absl::StrCat("ids[", i, "]"),
                         absl::StrCat("is ", request.ids(i), ", the vocabulary has ",
                                      (*info)->hello.vocabulary_size(), " ids"));
  }
  response.set_text(decode((*info)->tokenizer->vocabulary(),
                           {request.ids().data(), static_cast<size_t>(request.ids_size())}));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* InferenceService::finish(grpc::CallbackServerContext& context,
                                                   const absl::Status& status, const char* method,
                                                   const std::string& model) {
  environment_.metrics.count_request(model, method, status.code());
  add_retry_trailer(status, context);
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  reactor->Finish(to_grpc_status(status));
  return reactor;
}

}  // namespace lckv
