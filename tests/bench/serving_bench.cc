// Measures the engine without its network: `serving_bench [--device cuda:N] [--smoke | PART]`, from
// the source root.
#include <omp.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cpu/amx_permission.h"
#include "spdlog/spdlog.h"
#include "tests/bench/arguments.h"
#include "tests/bench/decode_and_prefill.h"
#include "tests/bench/device_limits.h"
#include "tests/bench/driver.h"
#include "tests/bench/held_out.h"
#include "tests/bench/limits.h"
#include "tests/bench/lines.h"

namespace lckv {
namespace {

constexpr char kDemo[] = "deploy/models/demo";
constexpr char kDemoOrdinary[] = "tests/bench/models/demo-ordinary";
constexpr char kTiny[] = "tests/bench/models/tinyllama";
constexpr char kTinyLckv[] = "tests/bench/models/tinyllama-lckv";

// How long each part measures, and on which models.
struct Scale {
  std::optional<int32_t> cuda_device;  // its number; absent: the CPU
  std::string ordinary = kTiny;
  std::string lckv = kTinyLckv;
  int decode_steps = 5;  // of a turn
  int itl_steps = 40;    // of a turn, at most
  int num_prompts = 16;
  int prompt_tokens = 512;
  int long_prompt = 2000;
  int shared_tokens = 1000;
  int own_tokens = 200;
  int peak_rows = 4096;
};

// Turns that what is compared is measured in: what else runs on the machine comes and goes.
constexpr int kTurns = 5;
constexpr int kWarmRuns = 3;

struct Limits {
  double bandwidth = 0;  // bytes/s
  double peak = 0;       // operations/s
  bool amx = false;
};

// Bytes per second of what the model runs on, measured anew at every call.
std::function<double()> bandwidth_of(const Scale& scale, size_t bytes) {
  if (!scale.cuda_device) {
    auto reads = std::make_shared<bench::MemoryReads>(bytes, omp_get_max_threads());
    return [reads] { return reads->read(); };
  }
  auto copies = std::make_shared<bench::DeviceCopies>(open_bench_ops(scale.cuda_device), bytes);
  return [copies] { return copies->copy(); };
}

void bench_batch(Driver& driver, const std::function<double()>& measure_bandwidth, int batch,
                 int num_steps, Goal goal) {
  double bandwidth = 0;
  double best = std::numeric_limits<double>::max();
  std::vector<double> all;
  double outside = 0;
  for (int turn = 0; turn < kTurns; ++turn) {
    bandwidth = std::max(bandwidth, measure_bandwidth());
    const DecodeTimes times = decode(driver, {.batch = batch}, num_steps);
    best = std::min(best, quantile(times.steps, 0.5));
    all.insert(all.end(), times.steps.begin(), times.steps.end());
    outside += times.outside / kTurns;
  }
  const double least = static_cast<double>(step_weight_bytes(driver.loaded())) / bandwidth;
  print({absl::StrCat("batch ", batch, ": tokens a second"), batch / quantile(all, 0.5), "tokens/s",
         "weights/bandwidth", batch / least, goal});
  print({"  in the turn that was least disturbed", batch / best, "tokens/s", "weights/bandwidth",
         batch / least});
  // Calls that return early say nothing of what a step spends in them.
  if (!driver.ops().returns_early() && (batch == 1 || batch == 32)) {
    print({"  share of a step outside kernels", 100 * outside, "%", "", 0, at_most(3)});
  }
}

void bench_decode(const Scale& scale, bool amx, bool reproducible) {
  print_heading(
      absl::StrCat("Decode, LCKV map, bfloat16, ", reproducible ? "reproducible" : "free"));
  const auto driver = open_driver(
      {.folder = scale.lckv, .cuda_device = scale.cuda_device, .reproducible = reproducible});
  const auto measure_bandwidth = bandwidth_of(scale, step_weight_bytes(driver->loaded()));
  for (const int batch : {1, 8, 16, 32}) {
    Goal goal;
    if (batch == 1) goal = at_least(0.8);
    if (batch == 16 && amx) goal = at_least(0.7);
    bench_batch(*driver, measure_bandwidth, batch, scale.decode_steps, goal);
  }
}

// A device's first run of a shape chooses products and loads kernels.
double warm_prefill(Driver& driver, const std::vector<std::vector<int32_t>>& prompts) {
  if (!driver.ops().returns_early()) return prefill(driver, prompts);
  prefill(driver, prompts);
  double best = std::numeric_limits<double>::max();
  for (int i = 0; i < kWarmRuns; ++i) best = std::min(best, prefill(driver, prompts));
  return best;
}

void bench_prefill(const Scale& scale, const Limits& limits) {
  print_heading("Prefill, bfloat16, free");
  double ordinary = 0;
  {
    const auto driver = open_driver({.folder = scale.ordinary, .cuda_device = scale.cuda_device});
    prefill(*driver, made_up_prompts(*driver, 1, 32));
    const int length = scale.long_prompt;
    const double one = warm_prefill(*driver, made_up_prompts(*driver, 1, length));
    const double done = prefill_operations(driver->loaded().config, length) / one;
    print({absl::StrCat("ordinary map, one prompt of ", length), done / 1e9, "GFLOP/s",
           "matmul peak", limits.peak / 1e9, at_least(0.5)});
    ordinary =
        warm_prefill(*driver, made_up_prompts(*driver, scale.num_prompts, scale.prompt_tokens));
    print({absl::StrCat("ordinary map, ", scale.num_prompts, " prompts of ", scale.prompt_tokens),
           ordinary, "s"});
  }
  const auto driver = open_driver({.folder = scale.lckv, .cuda_device = scale.cuda_device});
  const double lckv =
      warm_prefill(*driver, made_up_prompts(*driver, scale.num_prompts, scale.prompt_tokens));
  print({"LCKV map, exact, the same prompts (weights hardly settle)", lckv, "s", "ordinary map",
         ordinary, limits.amx ? Goal{} : at_most(1.6)});
  const double serial = scale.prompt_tokens *
                        static_cast<double>(step_weight_bytes(driver->loaded())) / limits.bandwidth;
  print({"  beside one read of the weights per position",
         lckv,
         "s",
         "tokens x weights/bandwidth",
         serial,
         {}});
}

// Beside it stands what the operations of the rows that are left would take at the miss's pace.
void bench_prefix(const Scale& scale) {
  print_heading("A beginning that prompts share, ordinary map, bfloat16, free");
  const auto driver = open_driver(
      {.folder = scale.ordinary, .cuda_device = scale.cuda_device, .prefix_caching = true});
  const ModelConfig& config = driver->loaded().config;
  const auto prompt = [&](int beginning, int ending) {
    auto made = made_up_prompt(scale.shared_tokens, config.vocabulary_size, beginning);
    const auto own = made_up_prompt(scale.own_tokens, config.vocabulary_size, 1000 + ending);
    made.insert(made.end(), own.begin(), own.end());
    return made;
  };
  if (driver->ops().returns_early()) prefill(*driver, {prompt(1, 3)});
  prefill(*driver, made_up_prompts(*driver, 1, 32));
  const double miss = prefill(*driver, {prompt(0, 0)});
  const double hit = std::min(prefill(*driver, {prompt(0, 1)}), prefill(*driver, {prompt(0, 2)}));
  const double all = prefill_operations(config, scale.shared_tokens + scale.own_tokens);
  const double left = 1 - prefill_operations(config, scale.shared_tokens) / all;
  print({absl::StrCat("first token, ", scale.shared_tokens, " + ", scale.own_tokens, " run"),
         1000 * miss, "ms"});
  print({absl::StrCat("  ", scale.shared_tokens, " of them shared"), 1000 * hit, "ms",
         "share that is left", 1000 * miss * left, at_most(1.3)});
}

struct BestPrefills {
  double ordinary = 1e30;
  double lckv = 1e30;
  int32_t walks = 0;
};

BestPrefills best_prefills(Driver& ordinary, Driver& lckv, const std::vector<int32_t>& prompt) {
  BestPrefills best;
  for (int i = 0; i < kTurns; ++i) {
    best.ordinary = std::min(best.ordinary, prefill(ordinary, {prompt}));
    best.lckv = std::min(best.lckv, prefill(lckv, {prompt}, &best.walks));
  }
  return best;
}

void bench_demo_prefill(const Scale& scale) {
  print_heading("One prompt of 511 real tokens, demo model, bfloat16, free");
  const std::vector<int32_t> prompt = held_out_tokens(kDemo, 511);
  LCKV_CHECK(prompt.size() == 511);
  const auto ordinary = open_driver({.folder = kDemoOrdinary, .cuda_device = scale.cuda_device});
  for (const int lookahead : {0, 4, 16, 64, 128, 256, 511}) {
    const auto driver = open_driver({.folder = kDemo,
                                     .cuda_device = scale.cuda_device,
                                     .dummy = false,
                                     .lookahead = lookahead});
    for (const bool cold : {false, true}) {
      driver->set_cold(cold);
      const BestPrefills best = best_prefills(*ordinary, *driver, prompt);
      const bool is_default = lookahead == 0 && !cold;
      const std::string what =
          absl::StrCat("look-ahead ", lookahead == 0 ? "by cost" : absl::StrCat(lookahead),
                       cold ? ", from zeros" : ", warm guess");
      print({what, 1000 * best.lckv, "ms", "ordinary map of the same shape", 1000 * best.ordinary,
             is_default ? at_most(3.2) : Goal{}});
      print({"  walks", static_cast<double>(best.walks), "", "", 0,
             is_default ? at_most(4) : Goal{}});
    }
  }
}

// Seconds between tokens of streams until a prompt of that length is prefilled.
std::vector<double> gaps_beside_prompt(Driver& driver, int num_streams, int prompt_tokens,
                                       int max_steps) {
  const std::vector<SequenceId> ids =
      start_streams(driver, {.batch = num_streams}, max_steps + 200);
  const SequenceId prompt = driver.submit(made_up_prompts(driver, 1, prompt_tokens)[0], 1);
  std::vector<double> gaps;
  double gap = 0;
  bool prefilled = false;
  while (!prefilled && gaps.size() < static_cast<size_t>(max_steps)) {
    const Driver::Turn turn = driver.step();
    gap += seconds(turn.time);
    bool streams_moved = false;
    for (const SequenceEvent& event : turn.events) {
      if (event.sequence == prompt) {
        prefilled = prefilled || event.kind == SequenceEvent::Kind::kFinished;
      } else if (event.kind == SequenceEvent::Kind::kToken) {
        streams_moved = true;
      }
    }
    if (streams_moved) gaps.push_back(std::exchange(gap, 0));
  }
  for (const SequenceId id : ids) driver.cancel(id);
  driver.cancel(prompt);
  driver.finish_all();
  return gaps;
}

void bench_interference(const Scale& scale) {
  print_heading("Decoding streams beside a long prompt, LCKV map, bfloat16, free");
  constexpr int kStreams = 8;
  const auto driver = open_driver({.folder = scale.lckv, .cuda_device = scale.cuda_device});
  std::vector<double> alone;
  std::vector<double> beside;
  for (int turn = 0; turn < kTurns; ++turn) {
    const DecodeTimes some = decode(*driver, {.batch = kStreams}, scale.itl_steps);
    alone.insert(alone.end(), some.steps.begin(), some.steps.end());
    const auto gaps = gaps_beside_prompt(*driver, kStreams, scale.long_prompt, scale.itl_steps);
    beside.insert(beside.end(), gaps.begin(), gaps.end());
  }
  const double alone_p99 = quantile(alone, 0.99);
  print({"8 streams alone: p99 between tokens", 1000 * alone_p99, "ms"});
  print({absl::StrCat("8 streams beside a prompt of ", scale.long_prompt, ": p99 between tokens"),
         1000 * quantile(beside, 0.99), "ms", "alone", 1000 * alone_p99, at_most(1.5)});
  print({"  median", 1000 * quantile(beside, 0.5), "ms", "alone", 1000 * quantile(alone, 0.5), {}});
}

Limits measure_machine(const Scale& scale) {
  print_heading("The machine");
  const auto driver = open_driver({.folder = scale.lckv, .cuda_device = scale.cuda_device});
  const ModelConfig& config = driver->loaded().config;
  Limits limits;
  limits.amx = !scale.cuda_device && ask_for_amx();
  const auto measure_bandwidth = bandwidth_of(scale, step_weight_bytes(driver->loaded()));
  for (int i = 0; i < kTurns; ++i) {
    limits.bandwidth = std::max(limits.bandwidth, measure_bandwidth());
  }
  const int64_t rows = scale.peak_rows;
  const std::vector<bench::ProductShape> shapes = {
      {rows, 2 * config.intermediate_size, config.hidden_size},
      {rows, config.hidden_size, config.intermediate_size},
      {rows, config.hidden_size, config.hidden_size},
      {rows, rows, rows}};
  limits.peak = scale.cuda_device
                    ? bench::device_product_peak(*open_bench_ops(scale.cuda_device), shapes)
                    : bench::product_peak(shapes, omp_get_max_threads());
  print({"weights on the device", static_cast<double>(driver->loaded().weight_bytes) / 1e9, "GB"});
  print({"bandwidth (best of 5)", limits.bandwidth / 1e9, "GB/s"});
  print({"matmul peak (bfloat16, best shape)", limits.peak / 1e9, "GFLOP/s"});
  print({limits.amx ? "AMX tiles can be used" : "AMX tiles cannot be used", limits.amx ? 1.0 : 0.0,
         ""});
  return limits;
}

constexpr std::array<const char*, 5> kParts = {"decode", "prefill", "prefix", "interference",
                                               "demo"};

// All parts, or the one named.
void run(const Scale& scale, absl::string_view only, bool with_demo_table) {
  const auto wanted = [only](absl::string_view part) { return only.empty() || only == part; };
  if (wanted("decode") || wanted("prefill")) {
    const Limits limits = measure_machine(scale);
    if (wanted("decode")) {
      bench_decode(scale, limits.amx, false);
      bench_decode(scale, limits.amx, true);
    }
    if (wanted("prefill")) bench_prefill(scale, limits);
  }
  if (wanted("prefix")) bench_prefix(scale);
  if (wanted("interference")) bench_interference(scale);
  if (wanted("demo") && with_demo_table) bench_demo_prefill(scale);
  print_summary();
}

}  // namespace
}  // namespace lckv

int main(int argc, char** argv) {
  spdlog::set_level(spdlog::level::off);
  const auto arguments = lckv::bench::read_arguments(argc, argv, lckv::kParts);
  lckv::Scale scale;
  if (arguments.smoke) {
    lckv::leave_goals_out();
    scale = {.ordinary = lckv::kDemoOrdinary,
             .lckv = lckv::kDemo,
             .decode_steps = 2,
             .itl_steps = 5,
             .num_prompts = 2,
             .prompt_tokens = 32,
             .long_prompt = 128,
             .shared_tokens = 100,
             .own_tokens = 20,
             .peak_rows = 256};
  }
  scale.cuda_device = arguments.cuda_device;
  lckv::run(scale, arguments.only, !arguments.smoke);
  return 0;
}
