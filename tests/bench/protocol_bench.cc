// The published protocol on a device: how many sequences of a prompt and as many new tokens fit,
// and how many tokens a second come of them, for a condensed map beside the ordinary one:
// `protocol_bench LCKV [--device cuda:N] [--smoke] [PART]`, from the source root. LCKV is the
// client.
//
// "Layer-Condensed KV Cache for Efficient Inference of Large Language Models" (arXiv 2405.10637),
// table 1: throughput is the batch's new tokens over the whole time, prompts included. Steps of
// decode are measured at three lengths and summed by Simpson's rule; what is decoded there are
// zeros, put there without the model's work (TimedOps).
#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "nlohmann/json.hpp"
#include "spdlog/spdlog.h"
#include "tests/bench/arguments.h"
#include "tests/bench/decode_and_prefill.h"
#include "tests/bench/lines.h"

namespace lckv {
namespace {

// A row of the table, and what the official code has there.
struct Protocol {
  std::string title;
  std::array<std::string, 2> models;  // the ordinary map, the condensed one
  int prompt_tokens = 0;
  int new_tokens = 0;
  int rows_of_step = 0;  // many, so that early streams hardly grow while late ones are prefilled
  std::vector<PrefillMode> modes;  // of what reads upward
  double cpu_offload_gb = 0;
  std::string published_on;
  std::array<double, 2> published_batches = {};
  std::array<double, 2> published_throughputs = {};  // tokens/s
};

struct Scale {
  std::optional<int32_t> cuda_device;  // its number; absent: the CPU
  std::string client;
  int num_prompts = 4;  // that prefill is measured with
  int decode_steps = 5;
  int32_t max_num_seqs = 2048;
  uint64_t kv_bytes = 0;  // what the device has left
};

Protocol resident() {
  return {.title = "7B, 2048 + 2048 tokens",
          .models = {"7b", "7b-lckv"},
          .prompt_tokens = 2048,
          .new_tokens = 2048,
          .rows_of_step = 8192,
          .modes = {PrefillMode::kExact, PrefillMode::kIterated},
          .published_on = "an A100 of 80 GB",
          .published_batches = {15, 128},
          .published_throughputs = {141.10, 421.02}};
}

Protocol offloaded() {
  return {.title = "30B, 512 + 1024 tokens, all layers in host memory",
          .models = {"30b", "30b-lckv"},
          .prompt_tokens = 512,
          .new_tokens = 1024,
          .rows_of_step = 32768,
          // Made-up weights settle a few rows a walk, and each walk would fetch all of them.
          .modes = {PrefillMode::kIterated},
          .cpu_offload_gb = 80,
          .published_on = "an RTX 3090",
          .published_batches = {4, 83},
          .published_throughputs = {0.23, 5.99}};
}

// What `lckv plan` says fits of sequences of that length.
double planned_batch(const Scale& scale, const std::string& folder, const Driver& driver,
                     int64_t length) {
  const MemoryGeometry& geometry = driver.loaded().plan.geometry;
  const int64_t bytes = geometry.num_blocks * geometry.block_bytes;
  const std::string command =
      absl::StrCat(scale.client, " plan ", folder, " --json --kv-cache-dtype bfloat16",
                   " --kv-cache-memory ", bytes, " --length ", length);
  const std::unique_ptr<FILE, int (*)(FILE*)> output(popen(command.c_str(), "r"), pclose);
  LCKV_CHECK(output != nullptr);
  std::string text(4096, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), output.get()));
  return nlohmann::json::parse(text)["this"]["batch"].get<double>();
}

// Streams of the whole length until the blocks hold no more: how many there are, and how long they
// are by then.
struct FullBatch {
  int32_t size = 0;
  int64_t length = 0;  // on average
};
FullBatch fill(Driver& driver, int32_t length, int32_t num_streams) {
  driver.set_idle(true);
  std::vector<SequenceId> ids;
  const int32_t most = driver.loaded().plan.max_context - length;
  for (const auto& prompt : made_up_prompts(driver, num_streams, length)) {
    ids.push_back(driver.submit(prompt, most));
  }
  FullBatch full;
  const uint64_t before = driver.load().num_preemptions;
  while (driver.load().num_preemptions == before) {
    const SchedulerLoad load = driver.load();
    if (load.num_running > 0) full = {load.num_running, load.num_cached_tokens / load.num_running};
    LCKV_CHECK(driver.step().time > absl::ZeroDuration());
  }
  for (const SequenceId id : ids) driver.cancel(id);
  driver.finish_all();
  driver.set_idle(false);
  return full;
}

// Of sequences of the whole length, while all grow until the last one is prefilled.
int32_t steady_batch(const Driver& driver, const Protocol& protocol, double planned,
                     const Scale& scale) {
  const ServingPlan& plan = driver.loaded().plan;
  const int64_t length = protocol.prompt_tokens + protocol.new_tokens;
  auto batch = static_cast<int32_t>(planned);
  for (; batch > 1; --batch) {
    // Those that decode take rows of a step too.
    const int64_t steps = batch * length / std::max(1, plan.scheduler.max_batched_rows - batch);
    const int64_t blocks = plan.geometry.blocks_of(length + steps + scale.decode_steps + 2);
    if (batch * blocks <= plan.geometry.num_blocks) break;
  }
  return batch;
}

// Of all prompts of the batch.
double prefill_seconds(Driver& driver, const Protocol& protocol, int32_t batch, const Scale& scale,
                       PrefillMode mode) {
  const int32_t some = std::min(batch, scale.num_prompts);
  const auto prompts = made_up_prompts(driver, some, protocol.prompt_tokens);
  return prefill(driver, prompts, nullptr, mode) * batch / some;
}

double decode_seconds(Driver& driver, const Protocol& protocol, int32_t batch, const Scale& scale) {
  const auto step_at = [&](int tokens) {
    const StreamShape streams{.batch = batch, .prompt_tokens = tokens, .has_idle_prompts = true};
    return quantile(decode(driver, streams, scale.decode_steps).steps, 0.5);
  };
  const int half = protocol.new_tokens / 2;
  const double begin = step_at(protocol.prompt_tokens);
  const double middle = step_at(protocol.prompt_tokens + half);
  const double end = step_at(protocol.prompt_tokens + protocol.new_tokens);
  return protocol.new_tokens * (begin + 4 * middle + end) / 6;
}

// Tokens a second of the best prefill mode.
double bench_map(const Protocol& protocol, int which, const Scale& scale, double ordinary) {
  const std::string folder = "tests/bench/models/" + protocol.models[which];
  const auto driver = open_driver({.folder = folder,
                                   .cuda_device = scale.cuda_device,
                                   .max_batched_tokens = protocol.rows_of_step,
                                   .max_num_seqs = scale.max_num_seqs,
                                   .kv_cache_bytes = scale.kv_bytes,
                                   .cpu_offload_gb = protocol.cpu_offload_gb});
  print_heading(absl::StrCat(protocol.title, ", ", which == 0 ? "ordinary" : "condensed", " map"));
  const int32_t length = protocol.prompt_tokens + protocol.new_tokens;
  const double planned = planned_batch(scale, folder, *driver, length);
  const auto most = static_cast<int32_t>(planned * 1.1) + 2;
  const FullBatch full = fill(*driver, length, std::min(most, scale.max_num_seqs));
  const double as_planned = planned_batch(scale, folder, *driver, full.length);
  print({absl::StrCat("sequences of ", full.length, " tokens that fit"),
         static_cast<double>(full.size), "", "lckv plan", as_planned, at_least(0.99)});
  print({absl::StrCat("batch of ", length, " tokens"), planned, ""});
  print({absl::StrCat("  the official code's, on ", protocol.published_on),
         protocol.published_batches[which], ""});
  double best = 0;
  const int32_t batch = steady_batch(*driver, protocol, planned, scale);
  const double decoded = decode_seconds(*driver, protocol, batch, scale);
  print({absl::StrCat("decode of ", batch, ", all new tokens"), decoded, "s"});
  const std::vector<PrefillMode> only = {PrefillMode::kExact};
  for (const PrefillMode mode : which == 0 ? only : protocol.modes) {
    const char* const name = mode == PrefillMode::kExact ? "exact" : "iterated";
    const double prefilled = prefill_seconds(*driver, protocol, batch, scale, mode);
    print({absl::StrCat(name, ": first tokens of all"), prefilled, "s"});
    const double throughput = batch * double{1} * protocol.new_tokens / (prefilled + decoded);
    print({absl::StrCat(name, ": throughput"),
           throughput,
           "tokens/s",
           ordinary > 0 ? "ordinary map" : "",
           ordinary,
           {}});
    best = std::max(best, throughput);
  }
  print({absl::StrCat("  the official code's, on ", protocol.published_on),
         protocol.published_throughputs[which], "tokens/s"});
  return best;
}

constexpr std::array<const char*, 2> kParts = {"7b", "30b-offloaded"};

}  // namespace
}  // namespace lckv

int main(int argc, char** argv) {
  spdlog::set_level(spdlog::level::off);
  if (argc < 2) {
    std::fprintf(stderr, "%s: the client's path is missing\n", argv[0]);
    return 2;
  }
  const auto arguments = lckv::bench::read_arguments(argc - 1, argv + 1, lckv::kParts);
  lckv::Scale scale{.cuda_device = arguments.cuda_device, .client = argv[1]};
  std::vector<lckv::Protocol> protocols;
  if (arguments.smoke) {
    lckv::leave_goals_out();
    scale.num_prompts = 1;
    scale.decode_steps = 1;
    scale.max_num_seqs = 32;
    scale.kv_bytes = uint64_t{4} << 20;
    protocols.push_back(lckv::resident());
    protocols.back().models = {"demo-ordinary", "../../../deploy/models/demo"};
    protocols.back().prompt_tokens = 32;
    protocols.back().new_tokens = 32;
    protocols.back().rows_of_step = 64;
  } else {
    if (arguments.only != "30b-offloaded") protocols.push_back(lckv::resident());
    if (arguments.only != "7b") protocols.push_back(lckv::offloaded());
  }
  for (const lckv::Protocol& protocol : protocols) {
    const double ordinary = lckv::bench_map(protocol, 0, scale, 0);
    lckv::bench_map(protocol, 1, scale, ordinary);
  }
  lckv::print_summary();
  return 0;
}
