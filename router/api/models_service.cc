#include "router/api/models_service.h"

#include <set>
#include <string>

#include "router/model_directory.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

v1::Model describe(const ReplicaSet& set, const ModelInfo& info) {
  const internal::v1::Hello& hello = info.hello;
  v1::Model model;
  model.set_name(hello.model());
  model.set_architecture(hello.architecture());
  model.set_fingerprint(hello.fingerprint());
  model.set_vocabulary_size(hello.vocabulary_size());
  model.set_max_context_tokens(hello.max_context_tokens());
  model.set_num_layers(hello.num_layers());
  *model.mutable_kv_source_layers() = hello.kv_source_layers();
  model.set_num_cached_layers(hello.num_cached_layers());
  model.set_prefill_passes(hello.prefill_passes());
  model.set_weight_dtype(hello.weight_dtype());
  model.set_kv_cache_dtype(hello.kv_cache_dtype());
  model.set_kv_bytes_per_token(hello.kv_bytes_per_token());
  model.set_block_tokens(hello.block_tokens());
  model.set_has_tokenizer(info.tokenizer != nullptr);
  model.set_has_chat_template(!hello.chat_template().empty());
  for (const ReplicaView& replica : set.replicas) {
    if (!replica.model || replica.model->hello.model() != hello.model()) continue;
    model.set_num_replicas(model.num_replicas() + 1);
    if (replica.state != ReplicaState::kReady) continue;
    model.set_num_ready_replicas(model.num_ready_replicas() + 1);
    model.set_kv_capacity_tokens(model.kv_capacity_tokens() +
                                 replica.model->hello.kv_capacity_tokens());
  }
  return model;
}

}  // namespace

v1::ListModelsResponse list_models(const ReplicaSet& set) {
  std::set<std::string> names(set.expected_models.begin(), set.expected_models.end());
  for (const ReplicaView& replica : set.replicas) {
    if (replica.model) names.insert(replica.model->hello.model());
  }
  v1::ListModelsResponse response;
  for (const std::string& name : names) {
    if (const auto info = find_model(set, name); info.ok()) {
      *response.add_models() = describe(set, **info);
    } else {
      response.add_models()->set_name(name);
    }
  }
  return response;
}

grpc::ServerUnaryReactor* ModelsService::ListModels(grpc::CallbackServerContext* context,
                                                    const v1::ListModelsRequest* /*request*/,
                                                    v1::ListModelsResponse* response) {
  const auto caller = access_.check(context->client_metadata(), Right::kGenerate);
  if (caller.ok()) *response = list_models(*fleet_.snapshot());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(to_grpc_status(caller.status()));
  return reactor;
}

grpc::ServerUnaryReactor* ModelsService::GetModel(grpc::CallbackServerContext* context,
                                                  const v1::GetModelRequest* request,
                                                  v1::Model* response) {
  const auto set = fleet_.snapshot();
  const auto caller = access_.check(context->client_metadata(), Right::kGenerate);
  absl::StatusOr<std::shared_ptr<const ModelInfo>> info = find_model(*set, request->name());
  if (!caller.ok()) info = caller.status();
  if (info.ok()) *response = describe(*set, **info);
  add_retry_trailer(info.status(), *context);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(to_grpc_status(info.status()));
  return reactor;
}

}  // namespace lckv
