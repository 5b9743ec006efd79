// lckv bench: load from random token ids or from a trace, and the latencies that clients see.
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/bench_plot.h"
#include "client/bench_report.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/resuming_stream.h"
#include "client/served_model.h"
#include "client/stream_call.h"
#include "client/workload.h"
#include "rpc/flags.h"

namespace lckv {
namespace {

struct BenchOptions {
  ConnectionOptions connection;
  std::string model;
  int num_requests = 0;  // 0: 100, or all of a trace
  std::string prompt_tokens = "128";
  std::string output_tokens = "64";
  double request_rate = 0;
  Arrivals arrivals = Arrivals::kPoisson;
  int burst_size = 10;
  std::string trace;  // a file; empty: drawn
  int max_resumes = 3;
  int concurrency = 0;
  float temperature = 0;
  uint64_t seed = 0;
  bool json = false;
  std::string output;  // of the JSON object, the plot beside it; empty: neither is written
};

constexpr int kDefaultRequests = 100;

v1::GenerateRequest make_request(const BenchOptions& options, const PlannedRequest& planned) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  request.mutable_token_ids()->mutable_ids()->Add(planned.prompt.begin(), planned.prompt.end());
  request.mutable_sampling()->set_temperature(options.temperature);
  request.mutable_sampling()->set_seed(options.seed);
  request.mutable_stopping()->set_max_new_tokens(planned.output_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  request.mutable_output()->set_omit_text(true);
  return request;
}

void send(v1::Inference::Stub& stub, const BenchOptions& options, const PlannedRequest& planned,
          FlightLimit& flight, BenchTally& tally) {
  const auto times = std::make_shared<StreamTimes>(absl::Now());
  const auto num_resumes = std::make_shared<int>(0);
  const auto num_prompt_tokens = static_cast<int64_t>(planned.prompt.size());
  start_resuming_stream(
      stub, make_request(options, planned), options.connection,
      {.max_resumes = options.max_resumes},
      {[times](const v1::GenerateEvent& event) {
         if (event.has_tokens()) times->add(absl::Now(), event.tokens().ids_size());
       },
       [times, num_resumes, num_prompt_tokens, &flight, &tally](const absl::Status& status) {
         tally.add(*times, num_prompt_tokens, *num_resumes, status);
         flight.leave();
       }},
      [num_resumes] { ++*num_resumes; });
}

BenchReport run_load(v1::Inference::Stub& stub, const BenchOptions& options,
                     const std::vector<PlannedRequest>& workload) {
  FlightLimit flight(options.concurrency);
  const absl::Time begin = absl::Now();
  BenchTally tally(begin);
  for (const PlannedRequest& planned : workload) {
    absl::SleepFor(begin + planned.start - absl::Now());
    flight.enter();
    send(stub, options, planned, flight, tally);
  }
  flight.wait_until_empty();
  return tally.report(absl::Now());
}

absl::StatusOr<std::vector<PlannedRequest>> plan_workload(const BenchOptions& options,
                                                          uint32_t vocabulary) {
  if (!options.trace.empty()) {
    std::ifstream file(options.trace);
    if (!file.is_open()) {
      return absl::NotFoundError(absl::StrCat("--trace: cannot read ", options.trace));
    }
    return parse_trace(file, {.name = options.trace,
                              .vocabulary = vocabulary,
                              .seed = options.seed,
                              .max_requests = options.num_requests});
  }
  const absl::StatusOr<LengthRange> prompt_tokens = parse_length_range(options.prompt_tokens);
  const absl::StatusOr<LengthRange> output_tokens = parse_length_range(options.output_tokens);
  if (!prompt_tokens.ok()) return prompt_tokens.status();
  if (!output_tokens.ok()) return output_tokens.status();
  return draw_workload(
      {.num_requests = options.num_requests > 0 ? options.num_requests : kDefaultRequests,
       .prompt_tokens = *prompt_tokens,
       .output_tokens = *output_tokens,
       .requests_per_second = options.request_rate,
       .arrivals = options.arrivals,
       .burst_size = options.burst_size,
       .vocabulary = vocabulary,
       .seed = options.seed});
}

absl::Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text << std::flush;
  if (file.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("--output: cannot write ", path));
}

// The JSON object, and the plot where ".svg" takes the place of ".json".
absl::Status write_files(const std::string& path, const BenchReport& report) {
  if (path.empty()) return absl::OkStatus();
  if (absl::Status status = write_file(path, bench_json(report)); !status.ok()) return status;
  return write_file(absl::StrCat(absl::StripSuffix(path, ".json"), ".svg"), bench_svg(report));
}

absl::Status run_bench(const BenchOptions& options) {
  const auto opened = open_channel(options.connection);
  if (!opened.ok()) return opened.status();
  const auto& channel = *opened;
  const absl::StatusOr<v1::Model> model = find_model(channel, options.connection, options.model);
  if (!model.ok()) return model.status();
  const auto stub = v1::Inference::NewStub(channel);
  const auto workload = plan_workload(options, model->vocabulary_size());
  if (!workload.ok()) return workload.status();
  // Before the run: what cannot be written is to be known then.
  if (absl::Status status = write_files(options.output, {}); !status.ok()) return status;
  const BenchReport report = run_load(*stub, options, *workload);
  std::cout << (options.json ? bench_json(report) : bench_text(report)) << std::flush;
  if (absl::Status status = write_files(options.output, report); !status.ok()) return status;
  if (report.num_completed == 0) {
    return absl::UnavailableError("no request was completed");
  }
  return absl::OkStatus();
}

CLI::Validator length_validator() {
  return CLI::Validator(
      [](std::string& given) { return std::string(parse_length_range(given).status().message()); },
      "N or MIN-MAX");
}

}  // namespace

Command add_bench(CLI::App& program) {
  const auto options = std::make_shared<BenchOptions>();
  CLI::App* app =
      program.add_subcommand("bench", "Measure TTFT, TPOT, ITL, end-to-end time and throughput");
  app->add_option("--model", options->model, "Name; may be absent where one is served");
  app->add_option("--num-requests", options->num_requests,
                  "Requests to send; default: 100, or all of a trace")
      ->check(CLI::Range(1, 10'000'000));
  app->add_option("--prompt-tokens", options->prompt_tokens, "Length of the prompts")
      ->check(length_validator())
      ->type_name("")
      ->capture_default_str();
  app->add_option("--output-tokens", options->output_tokens, "Length of the continuations")
      ->check(length_validator())
      ->type_name("")
      ->capture_default_str();
  auto* const rate = app->add_option("--request-rate", options->request_rate,
                                     "Requests per second; 0: all at once")
                         ->check(CLI::NonNegativeNumber)
                         ->capture_default_str();
  add_enum(*app, "--arrivals", options->arrivals,
           {{"poisson", Arrivals::kPoisson},
            {"constant", Arrivals::kConstant},
            {"burst", Arrivals::kBurst}},
           "How requests arrive at --request-rate; burst: --burst-size at once, then a pause");
  app->add_option("--burst-size", options->burst_size, "Requests of a burst")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app->add_option("--trace", options->trace,
                  "Lengths and arrivals from a file in the form of Mooncake's traces: JSON lines "
                  "with timestamp, input_length, output_length and maybe hash_ids")
      ->type_name("FILE")
      ->excludes(rate);
  app->add_option("--max-resumes", options->max_resumes,
                  "How often a request goes on after UNAVAILABLE, behind its last token")
      ->check(CLI::Range(0, 20))
      ->capture_default_str();
  app->add_option("--concurrency", options->concurrency, "Most requests in flight; 0: no limit")
      ->check(CLI::Range(0, 100'000))
      ->capture_default_str();
  app->add_option("--temperature", options->temperature, "0 is greedy")->capture_default_str();
  app->add_option("--seed", options->seed, "Of prompts, lengths, arrivals and sampling")
      ->capture_default_str();
  app->add_flag("--json", options->json, "Print one JSON object");
  app->add_option("--output", options->output,
                  "Write the JSON object there too, and beside it a plot as .svg")
      ->type_name("FILE.json");
  add_connection_flags(*app, options->connection);
  return {app, [options] { return run_bench(*options); }};
}

}  // namespace lckv
