// lckv models, lckv replicas: what a router serves, and from where.
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/text_table.h"
#include "google/protobuf/util/json_util.h"
#include "lckv/v1/admin.grpc.pb.h"
#include "lckv/v1/models.grpc.pb.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

struct ListOptions {
  ConnectionOptions connection;
  bool json = false;
};

absl::Status print_json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions format;
  format.preserve_proto_field_names = true;
  format.always_print_primitive_fields = true;
  std::string line;
  if (!google::protobuf::util::MessageToJsonString(message, &line, format).ok()) {
    return absl::InternalError("the response is not valid JSON: a name is not UTF-8");
  }
  std::cout << line << std::endl;
  return absl::OkStatus();
}

std::string model_table(const v1::ListModelsResponse& response) {
  std::vector<std::vector<std::string>> rows = {{"MODEL", "ARCHITECTURE", "CONTEXT", "LAYERS",
                                                 "CACHED", "KV B/TOKEN", "KV CAPACITY", "TOKENIZER",
                                                 "REPLICAS"}};
  for (const v1::Model& model : response.models()) {
    rows.push_back({model.name(), model.architecture(), absl::StrCat(model.max_context_tokens()),
                    absl::StrCat(model.num_layers()), absl::StrCat(model.num_cached_layers()),
                    absl::StrFormat("%g", model.kv_bytes_per_token()),
                    absl::StrCat(model.kv_capacity_tokens()), model.has_tokenizer() ? "yes" : "no",
                    absl::StrCat(model.num_ready_replicas(), "/", model.num_replicas())});
  }
  return format_table(rows);
}

std::string state_name(v1::Replica::State state) {
  const std::string name = v1::Replica::State_Name(state);
  return absl::AsciiStrToLower(absl::StripPrefix(name, "STATE_"));
}

std::string replica_table(const v1::ListReplicasResponse& response) {
  std::vector<std::vector<std::string>> rows = {{"ADDRESS", "STATE", "MODEL", "REPLICA", "RUNNING",
                                                 "WAITING", "FREE BLOCKS", "STEP", "STEP AGE"}};
  for (const v1::Replica& replica : response.replicas()) {
    rows.push_back(
        {replica.address(), state_name(replica.state()), replica.model(), replica.replica_id(),
         absl::StrCat(replica.num_running()), absl::StrCat(replica.num_waiting()),
         absl::StrCat(replica.num_free_blocks(), "/", replica.num_blocks()),
         absl::StrCat(replica.last_step()), absl::StrFormat("%.1fs", replica.step_age_seconds())});
  }
  return format_table(rows);
}

absl::Status run_models(const ListOptions& options) {
  const auto channel = open_channel(options.connection);
  if (!channel.ok()) return channel.status();
  const auto stub = v1::Models::NewStub(*channel);
  grpc::ClientContext call;
  set_deadline(call, options.connection);
  v1::ListModelsResponse response;
  if (const grpc::Status status = stub->ListModels(&call, {}, &response); !status.ok()) {
    return to_absl_status(status);
  }
  if (options.json) return print_json(response);
  std::cout << model_table(response);
  return absl::OkStatus();
}

absl::Status run_replicas(const ListOptions& options) {
  const auto channel = open_channel(options.connection);
  if (!channel.ok()) return channel.status();
  const auto stub = v1::Admin::NewStub(*channel);
  grpc::ClientContext call;
  set_deadline(call, options.connection);
  v1::ListReplicasResponse response;
  if (const grpc::Status status = stub->ListReplicas(&call, {}, &response); !status.ok()) {
    return to_absl_status(status);
  }
  if (options.json) return print_json(response);
  std::cout << replica_table(response);
  return absl::OkStatus();
}

Command add_list(CLI::App& program, const std::string& name, const std::string& help,
                 absl::Status (*run)(const ListOptions&)) {
  const auto options = std::make_shared<ListOptions>();
  options->connection.timeout = absl::Seconds(10);
  CLI::App* app = program.add_subcommand(name, help);
  app->add_flag("--json", options->json, "Print one JSON object");
  add_connection_flags(*app, options->connection);
  return {app, [options, run] { return run(*options); }};
}

}  // namespace

Command add_models(CLI::App& program) {
  return add_list(program, "models", "List the served models and what their KV costs", run_models);
}

Command add_replicas(CLI::App& program) {
  return add_list(program, "replicas", "List the replicas and their load", run_replicas);
}

}  // namespace lckv
