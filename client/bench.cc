// lckv bench: load from random token ids, and the latencies that clients see.
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "client/bench_report.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/served_model.h"
#include "client/stream_call.h"
#include "client/workload.h"

namespace lckv {
namespace {

struct BenchOptions {
  ConnectionOptions connection;
  std::string model;
  int num_requests = 100;
  std::string prompt_tokens = "128";
  std::string output_tokens = "64";
  double request_rate = 0;
  int concurrency = 0;
  float temperature = 0;
  uint64_t seed = 0;
  bool json = false;
};

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
  const auto num_prompt_tokens = static_cast<int64_t>(planned.prompt.size());
  start_stream(stub, make_request(options, planned), options.connection,
               {[times](const v1::GenerateEvent& event) {
                  if (event.has_tokens()) times->add(absl::Now(), event.tokens().ids_size());
                },
                [times, num_prompt_tokens, &flight, &tally](const absl::Status& status) {
                  tally.add(*times, num_prompt_tokens, status);
                  flight.leave();
                }});
}

BenchReport run_load(v1::Inference::Stub& stub, const BenchOptions& options,
                     const std::vector<PlannedRequest>& workload) {
  FlightLimit flight(options.concurrency);
  BenchTally tally;
  const absl::Time begin = absl::Now();
  for (const PlannedRequest& planned : workload) {
    absl::SleepFor(begin + planned.start - absl::Now());
    flight.enter();
    send(stub, options, planned, flight, tally);
  }
  flight.wait_until_empty();
  return tally.report(absl::Now() - begin);
}

absl::Status run_bench(const BenchOptions& options) {
  const absl::StatusOr<LengthRange> prompt_tokens = parse_length_range(options.prompt_tokens);
  const absl::StatusOr<LengthRange> output_tokens = parse_length_range(options.output_tokens);
  if (!prompt_tokens.ok()) return prompt_tokens.status();
  if (!output_tokens.ok()) return output_tokens.status();
  const auto opened = open_channel(options.connection);
  if (!opened.ok()) return opened.status();
  const auto& channel = *opened;
  const absl::StatusOr<v1::Model> model = find_model(channel, options.connection, options.model);
  if (!model.ok()) return model.status();
  const auto stub = v1::Inference::NewStub(channel);
  const BenchReport report = run_load(*stub, options,
                                      draw_workload({.num_requests = options.num_requests,
                                                     .prompt_tokens = *prompt_tokens,
                                                     .output_tokens = *output_tokens,
                                                     .requests_per_second = options.request_rate,
                                                     .vocabulary = model->vocabulary_size(),
                                                     .seed = options.seed}));
  std::cout << (options.json ? bench_json(report) : bench_text(report)) << std::flush;
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
  app->add_option("--num-requests", options->num_requests, "Requests to send")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app->add_option("--prompt-tokens", options->prompt_tokens, "Length of the prompts")
      ->check(length_validator())
      ->type_name("")
      ->capture_default_str();
  app->add_option("--output-tokens", options->output_tokens, "Length of the continuations")
      ->check(length_validator())
      ->type_name("")
      ->capture_default_str();
  app->add_option("--request-rate", options->request_rate,
                  "Requests per second, as a Poisson process; 0: all at once")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--concurrency", options->concurrency, "Most requests in flight; 0: no limit")
      ->check(CLI::Range(0, 100'000))
      ->capture_default_str();
  app->add_option("--temperature", options->temperature, "0 is greedy")->capture_default_str();
  app->add_option("--seed", options->seed, "Of prompts, lengths, arrivals and sampling")
      ->capture_default_str();
  app->add_flag("--json", options->json, "Print one JSON object");
  add_connection_flags(*app, options->connection);
  return {app, [options] { return run_bench(*options); }};
}

}  // namespace lckv
