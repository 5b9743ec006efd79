// lckv models, lckv replicas, lckv drain: what is served, from where, and what is to be left.
// longer.
#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
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
  absl::Duration watch = absl::ZeroDuration();  // replicas: between tables; zero: one only
};

struct DrainOptions {
  ConnectionOptions connection;
  std::string replica;  // id or address
  bool undo = false;
  bool move = false;
  absl::Duration grace = absl::InfiniteDuration();  // infinite: the replica's own
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

absl::StatusOr<v1::ListReplicasResponse> list(v1::Admin::Stub& stub,
                                              const ConnectionOptions& connection) {
  grpc::ClientContext call;
  set_deadline(call, connection);
  v1::ListReplicasResponse response;
  const grpc::Status status = stub.ListReplicas(&call, {}, &response);
  if (!status.ok()) return to_absl_status(status);
  return response;
}

absl::Status run_replicas(const ListOptions& options) {
  const auto channel = open_channel(options.connection);
  if (!channel.ok()) return channel.status();
  const auto stub = v1::Admin::NewStub(*channel);
  // On a terminal a table takes the place of the one before it.
  const bool clears = options.watch > absl::ZeroDuration() && !options.json && isatty(1) != 0;
  for (;;) {
    const auto response = list(*stub, options.connection);
    if (!response.ok()) return response.status();
    if (clears) std::cout << "\x1b[H\x1b[2J";
    if (options.json) {
      if (absl::Status status = print_json(*response); !status.ok()) return status;
    } else {
      std::cout << replica_table(*response) << std::flush;
    }
    if (options.watch <= absl::ZeroDuration() || !std::cout) return absl::OkStatus();
    absl::SleepFor(options.watch);
  }
}

absl::Status run_drain(const DrainOptions& options) {
  const auto channel = open_channel(options.connection);
  if (!channel.ok()) return channel.status();
  const auto stub = v1::Admin::NewStub(*channel);
  const auto replicas = list(*stub, options.connection);
  if (!replicas.ok()) return replicas.status();
  std::string id = options.replica;
  for (const v1::Replica& replica : replicas->replicas()) {
    if (replica.address() == options.replica) id = replica.replica_id();
  }
  grpc::ClientContext call;
  set_deadline(call, options.connection);
  v1::Replica replica;
  grpc::Status status;
  if (options.undo) {
    v1::UndrainReplicaRequest request;
    request.set_replica_id(id);
    status = stub->UndrainReplica(&call, request, &replica);
  } else {
    v1::DrainReplicaRequest request;
    request.set_replica_id(id);
    request.set_move(options.move);
    if (options.grace != absl::InfiniteDuration()) {
      request.mutable_grace()->set_seconds(absl::ToInt64Seconds(options.grace));
      request.mutable_grace()->set_nanos(
          static_cast<int32_t>(absl::ToInt64Nanoseconds(options.grace % absl::Seconds(1))));
    }
    status = stub->DrainReplica(&call, request, &replica);
  }
  if (!status.ok()) return to_absl_status(status);
  v1::ListReplicasResponse response;
  *response.add_replicas() = std::move(replica);
  std::cout << replica_table(response);
  return absl::OkStatus();
}

Command add_list(CLI::App& program, const std::string& name, const std::string& help,
                 absl::Status (*run)(const ListOptions&),
                 const std::shared_ptr<ListOptions>& options) {
  options->connection.timeout = absl::Seconds(10);
  CLI::App* app = program.add_subcommand(name, help);
  app->add_flag("--json", options->json, "Print one JSON object");
  add_connection_flags(*app, options->connection);
  return {app, [options, run] { return run(*options); }};
}

}  // namespace

Command add_models(CLI::App& program) {
  return add_list(program, "models", "List the served models and what their KV costs", run_models,
                  std::make_shared<ListOptions>());
}

Command add_replicas(CLI::App& program) {
  const auto options = std::make_shared<ListOptions>();
  const Command command =
      add_list(program, "replicas", "List the replicas and their load", run_replicas, options);
  command.app->add_flag_function(
      "--watch", [options](int64_t) { options->watch = absl::Seconds(1); },
      "Print them anew every second, until interrupted");
  return command;
}

Command add_drain(CLI::App& program) {
  const auto options = std::make_shared<DrainOptions>();
  options->connection.timeout = absl::Seconds(10);
  CLI::App* app = program.add_subcommand(
      "drain", "Give a replica no new work; its streams finish, or move to equal replicas");
  app->add_option("replica", options->replica, "Its id or address, as `lckv replicas` lists them")
      ->required();
  CLI::Option* undo = app->add_flag("--undo", options->undo, "Give it work again");
  CLI::Option* move =
      app->add_flag("--move", options->move, "Move its streams at once")->excludes(undo);
  app->add_option_function<std::string>(
         "--grace",
         [options](const std::string& given) { absl::ParseDuration(given, &options->grace); },
         "How long streams may go on before they move; default: the replica's --drain-timeout")
      ->check(CLI::Validator(
          [](std::string& given) {
            absl::Duration grace;
            const bool valid = absl::ParseDuration(given, &grace) &&
                               grace >= absl::ZeroDuration() && grace < absl::Hours(24 * 365);
            return valid ? std::string()
                         : absl::StrCat("\"", given, "\" is no time like 30s or 2m");
          },
          "DURATION"))
      ->type_name("")
      ->excludes(undo)
      ->excludes(move);
  add_connection_flags(*app, options->connection);
  return {app, [options] { return run_drain(*options); }};
}

}  // namespace lckv
