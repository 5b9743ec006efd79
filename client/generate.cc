// lckv generate: one call, streamed to standard output.
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/request_flags.h"
#include "google/protobuf/util/json_util.h"
#include "lckv/v1/inference.grpc.pb.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

struct GenerateOptions {
  ConnectionOptions connection;
  RequestFlags request;
  bool json = false;
};

void print_json(const v1::GenerateEvent& event) {
  google::protobuf::util::JsonPrintOptions format;
  format.preserve_proto_field_names = true;
  format.always_print_primitive_fields = true;  // position 0 and choice 0 are values too
  std::string line;
  if (google::protobuf::util::MessageToJsonString(event, &line, format).ok()) {
    std::cout << line << std::endl;
  }
}

// One choice is printed as it comes, several each as a whole, because their tokens arrive mixed.
class TextPrinter {
 public:
  TextPrinter(bool streamed, bool ids_only) : streamed_(streamed), ids_only_(ids_only) {}

  void print(const v1::GenerateEvent& event) {
    if (event.has_tokens()) {
      const std::string text = render(event.tokens());
      if (streamed_) {
        std::cout << text << std::flush;
      } else {
        pending_[event.choice()] += text;
      }
    } else if (event.has_finished() && !streamed_) {
      std::cout << "[choice " << event.choice() << "]\n"
                << std::exchange(pending_[event.choice()], "") << std::endl;
    }
  }
  // At the end of the call, however it ended.
  void finish() {
    if (streamed_) std::cout << std::endl;
  }

 private:
  std::string render(const v1::Tokens& tokens) const {
    if (!ids_only_) return tokens.text();
    std::string text;
    for (const uint32_t id : tokens.ids()) absl::StrAppend(&text, id, " ");
    return text;
  }

  const bool streamed_;
  const bool ids_only_;
  std::map<uint32_t, std::string> pending_;
};

absl::Status run_generate(const GenerateOptions& options) {
  const absl::StatusOr<v1::GenerateRequest> request = make_request(options.request);
  if (!request.ok()) return request.status();
  const auto channel = open_channel(options.connection);
  if (!channel.ok()) return channel.status();
  const auto stub = v1::Inference::NewStub(*channel);
  grpc::ClientContext call;
  set_deadline(call, options.connection);
  const auto reader = stub->Generate(&call, *request);
  TextPrinter printer(options.request.num_choices <= 1, options.request.omit_text);
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
    if (options.json) {
      print_json(event);
    } else {
      printer.print(event);
    }
  }
  if (!options.json) printer.finish();
  return to_absl_status(reader->Finish());
}

}  // namespace

Command add_generate(CLI::App& program) {
  const auto options = std::make_shared<GenerateOptions>();
  CLI::App* app = program.add_subcommand("generate", "Continue a prompt");
  add_request_flags(*app, options->request);
  app->add_flag("--json", options->json, "Print each event as one line of JSON")->group("Output");
  add_connection_flags(*app, options->connection);
  return {app, [options] { return run_generate(*options); }};
}

}  // namespace lckv
