// lckv score: perplexity of a text under a served model, through prompt logprobs.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "client/connection.h"
#include "client/request_flags.h"
#include "client/score_windows.h"
#include "client/served_model.h"
#include "client/stream_call.h"
#include "nlohmann/json.hpp"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

struct ScoreOptions {
  ConnectionOptions connection;
  std::string file;
  std::string model;
  size_t context = 0;
  size_t stride = 0;
  int concurrency = 4;
  v1::PrefillMode prefill_mode = v1::PREFILL_MODE_UNSPECIFIED;
  bool json = false;
};

using Ids = std::vector<uint32_t>;

absl::StatusOr<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file.is_open() || file.bad()) {
    return absl::NotFoundError(absl::StrCat("cannot read \"", path, "\""));
  }
  return text;
}

absl::StatusOr<Ids> tokenize(v1::Inference::Stub& stub, const ScoreOptions& options,
                             const std::string& text) {
  grpc::ClientContext call;
  set_deadline(call, options.connection);
  v1::TokenizeRequest request;
  request.set_model(options.model);
  request.set_text(text);
  v1::TokenizeResponse response;
  if (const grpc::Status status = stub.Tokenize(&call, request, &response); !status.ok()) {
    return to_absl_status(status);
  }
  return Ids(response.ids().begin(), response.ids().end());
}

// Adds up what the windows' calls report. Thread-safe.
class Tally {
 public:
  explicit Tally(size_t num_windows)
      : num_windows_(num_windows), on_terminal_(isatty(STDERR_FILENO) == 1) {}

  // `nll` and `tokens` of one whole window.
  void add(double nll, size_t tokens) {
    const std::lock_guard lock(mutex_);
    nll_ += nll;
    tokens_ += tokens;
    ++done_;
    report();
  }
  void fail(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    if (status_.ok()) status_ = status;
  }
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }
  double nll() const {
    const std::lock_guard lock(mutex_);
    return nll_ / static_cast<double>(tokens_);
  }
  size_t tokens() const {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }

 private:
  // A line that rewrites itself on a terminal, every tenth of the work elsewhere.
  void report() const {
    const size_t tenth = std::max<size_t>(1, num_windows_ / 10);
    if (!on_terminal_ && done_ % tenth != 0 && done_ != num_windows_) return;
    std::cerr << (on_terminal_ ? "\r" : "")
              << absl::StrFormat("window %d of %d, perplexity %.4f", done_, num_windows_,
                                 std::exp(nll_ / static_cast<double>(tokens_)))
              << (on_terminal_ && done_ != num_windows_ ? "" : "\n") << std::flush;
  }

  const size_t num_windows_;
  const bool on_terminal_;
  mutable std::mutex mutex_;
  absl::Status status_;
  double nll_ = 0;
  size_t tokens_ = 0;
  size_t done_ = 0;
};

// Collects the logprobs of one window's call; the window is counted only when its call ended well.
class WindowListener {
 public:
  WindowListener(size_t first_position, size_t num_expected, Tally& tally)
      : first_position_(first_position), num_expected_(num_expected), tally_(tally) {}

  void read(const v1::GenerateEvent& event) {
    if (!event.has_prompt_logprobs()) return;
    size_t position = event.prompt_logprobs().position();
    for (const v1::TokenLogprobs& token : event.prompt_logprobs().logprobs()) {
      if (position++ < first_position_ || !token.has_logprob()) continue;
      nll_ -= token.logprob();
      ++num_scored_;
    }
  }
  void end(const absl::Status& status) {
    if (!status.ok()) {
      tally_.fail(status);
    } else if (num_scored_ != num_expected_) {
      tally_.fail(absl::InternalError(absl::StrCat("the router sent ", num_scored_,
                                                   " logprobs of a prompt where ", num_expected_,
                                                   " were due")));
    } else {
      tally_.add(nll_, num_scored_);
    }
  }

 private:
  const size_t first_position_;
  const size_t num_expected_;
  Tally& tally_;
  double nll_ = 0;
  size_t num_scored_ = 0;
};

v1::GenerateRequest window_request(const ScoreOptions& options, const Ids& prefix, const Ids& ids,
                                   const ScoreWindow& window) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  request.set_prefill_mode(options.prefill_mode);
  auto& prompt = *request.mutable_token_ids()->mutable_ids();
  prompt.Add(prefix.begin(), prefix.end());
  prompt.Add(ids.begin() + window.begin, ids.begin() + window.end);
  request.mutable_stopping()->set_max_new_tokens(0);
  request.mutable_output()->set_omit_text(true);
  request.mutable_output()->set_num_prompt_logprobs(0);
  return request;
}

absl::Status score_windows(v1::Inference::Stub& stub, const ScoreOptions& options,
                           const Ids& prefix, const Ids& ids,
                           const std::vector<ScoreWindow>& windows, Tally& tally) {
  FlightLimit flight(options.concurrency);
  for (const ScoreWindow& window : windows) {
    flight.enter();
    if (!tally.status().ok()) {
      flight.leave();
      break;
    }
    const auto listener =
        std::make_shared<WindowListener>(prefix.size() + window.first_scored - window.begin,
                                         window.end - window.first_scored, tally);
    start_stream(stub, window_request(options, prefix, ids, window), options.connection,
                 {[listener](const v1::GenerateEvent& event) { listener->read(event); },
                  [listener, &flight](const absl::Status& status) {
                    listener->end(status);
                    flight.leave();
                  }});
  }
  flight.wait_until_empty();
  return tally.status();
}

void print_result(const ScoreOptions& options, const Tally& tally, size_t num_windows) {
  if (options.json) {
    std::cout << nlohmann::json{{"perplexity", std::exp(tally.nll())},
                                {"nll", tally.nll()},
                                {"tokens", tally.tokens()},
                                {"windows", num_windows}}
              << std::endl;
  } else {
    std::cout << absl::StrFormat("perplexity %.4f  nll %.6f  tokens %d  windows %d\n",
                                 std::exp(tally.nll()), tally.nll(), tally.tokens(), num_windows);
  }
}

absl::Status run_score(const ScoreOptions& options) {
  const absl::StatusOr<std::string> text = read_text(options.file);
  if (!text.ok()) return text.status();
  const auto opened = open_channel(options.connection);
  if (!opened.ok()) return opened.status();
  const auto& channel = *opened;
  const absl::StatusOr<v1::Model> model = find_model(channel, options.connection, options.model);
  if (!model.ok()) return model.status();
  const size_t context = options.context == 0 ? model->max_context_tokens() : options.context;
  const auto stub = v1::Inference::NewStub(channel);
  const absl::StatusOr<Ids> prefix = tokenize(*stub, options, "");
  if (!prefix.ok()) return prefix.status();
  absl::StatusOr<Ids> ids = tokenize(*stub, options, *text);
  if (!ids.ok()) return ids.status();
  if (ids->size() < prefix->size() || !std::equal(prefix->begin(), prefix->end(), ids->begin())) {
    return absl::FailedPreconditionError("the tokenizer's special tokens do not come first");
  }
  ids->erase(ids->begin(), ids->begin() + prefix->size());
  const auto windows = cut_windows(
      ids->size(), {.context = context, .stride = options.stride, .prefix = prefix->size()});
  if (!windows.ok()) return windows.status();
  Tally tally(windows->size());
  if (const absl::Status status = score_windows(*stub, options, *prefix, *ids, *windows, tally);
      !status.ok()) {
    return status;
  }
  print_result(options, tally, windows->size());
  return absl::OkStatus();
}

}  // namespace

Command add_score(CLI::App& program) {
  const auto options = std::make_shared<ScoreOptions>();
  CLI::App* app = program.add_subcommand(
      "score", "Perplexity of a text file, in windows that each begin with the model's BOS");
  app->add_option("file", options->file, "UTF-8 text")->required();
  app->add_option("--model", options->model, "Name; may be absent where one is served");
  app->add_option("--context", options->context,
                  "Tokens of a window, BOS included; 0: the model's longest")
      ->capture_default_str();
  app->add_option("--stride", options->stride,
                  "Tokens from window to window; 0: no overlap. Each token is scored once")
      ->capture_default_str();
  app->add_option("--concurrency", options->concurrency, "Windows in flight")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app->add_flag("--json", options->json, "Print one JSON object");
  add_prefill_mode_flag(*app, options->prefill_mode);
  add_connection_flags(*app, options->connection);
  return {app, [options] { return run_score(*options); }};
}

}  // namespace lckv
