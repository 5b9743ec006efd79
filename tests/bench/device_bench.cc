// Measures kernels alone and the model's decode against what the device can do, all of it through
// the device's operations: `device_bench [--device cuda:N] [--smoke] [PART]`, from the source root.
#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"
#include "tests/bench/arguments.h"
#include "tests/bench/attention_load.h"
#include "tests/bench/decode_and_prefill.h"
#include "tests/bench/device_limits.h"
#include "tests/bench/lines.h"

namespace lckv {
namespace {

using bench::AttentionLoad;
using bench::AttentionShape;

struct Scale {
  std::optional<int32_t> cuda_device;  // its number; absent: the CPU
  std::string folder = "tests/bench/models/tinyllama";
  int64_t copy_bytes = int64_t{4} << 30;
  int64_t square = 4096;
  // Of decode, each more than a million tokens together.
  std::vector<AttentionShape> histories = {{.num_sequences = 256, .context = 4096},
                                           {.num_sequences = 8, .context = 131072}};
  int32_t prompt = 8192;
  std::vector<std::string> small = {"tinyllama", "tinyllama-lckv"};
  std::vector<std::string> large = {"7b", "7b-lckv"};
  std::vector<int> batches = {1, 64, 256, 1024};
  std::vector<int> small_contexts = {512};  // of decoding streams
  std::vector<int> large_contexts = {512, 2048, 8192};
  int decode_steps = 10;
  uint64_t kv_bytes = 0;  // what the device has left
};

struct Limits {
  double bandwidth = 0;  // bytes/s, read and written
  double peak = 0;       // operations/s
};

constexpr int32_t kKvHeads = 4;

ModelConfig config_of(const Scale& scale) {
  const auto files = read_checkpoint_files(scale.folder).value();
  return parse_model_config(files.config, files.generation_config).value();
}

Limits measure_limits(const std::shared_ptr<Ops>& ops, const Scale& scale) {
  print_heading("The device");
  Limits limits;
  limits.bandwidth = bench::DeviceCopies(ops, static_cast<size_t>(scale.copy_bytes)).copy();
  print({"copy bandwidth, read and written", limits.bandwidth / 1e9, "GB/s"});
  const ModelConfig config = config_of(scale);
  const int64_t rows = scale.square;
  const std::vector<bench::ProductShape> shapes = {
      {rows, rows, rows},
      {2 * rows, 2 * rows, 2 * rows},
      {rows, 2 * config.intermediate_size, config.hidden_size},
      {rows, config.hidden_size, config.intermediate_size},
      {rows, config.hidden_size, config.hidden_size}};
  for (const bench::ProductShape& shape : shapes) {
    const double done = bench::device_product_peak(*ops, {shape});
    print({absl::StrCat("matmul ", shape.rows, " x ", shape.n, " x ", shape.k, ", bfloat16"),
           done / 1e12, "TFLOP/s"});
    limits.peak = std::max(limits.peak, done);
  }
  return limits;
}

std::string describe(const AttentionShape& shape) {
  return absl::StrCat("head size ", shape.head_dim, ", ", shape.heads_per_kv, " per KV head, ",
                      shape.num_sequences, " x ", shape.context);
}

// `shape` with each head size and number of heads per KV head.
std::vector<AttentionShape> in_all_heads(AttentionShape shape) {
  std::vector<AttentionShape> shapes;
  shape.kv_heads = kKvHeads;
  for (shape.head_dim = 64; shape.head_dim <= 128; shape.head_dim += 64) {
    for (const int32_t heads_per_kv : {1, 4, 8}) {
      shape.heads_per_kv = heads_per_kv;
      shapes.push_back(shape);
    }
  }
  return shapes;
}

// In one batch: the layers of a model share what is made of their rows on the host.
double attention_seconds(Ops& ops, AttentionLoad& load) {
  ops.begin_batch();
  const double taken = bench::DeviceTimer(ops).seconds_of([&] { load.run(); });
  ops.end_batch();
  return taken;
}

void bench_decode_attention(Ops& ops, const Scale& scale, const Limits& limits) {
  print_heading("Attention alone, decode, bfloat16, free");
  for (const AttentionShape& history : scale.histories) {
    for (const AttentionShape& shape : in_all_heads(history)) {
      AttentionLoad load(ops, shape);
      const double done = load.kv_bytes() / attention_seconds(ops, load);
      print({describe(shape), done / 1e9, "GB/s", "copy bandwidth", limits.bandwidth / 1e9,
             at_least(0.9)});
    }
  }
}

void bench_prefill_attention(Ops& ops, const Scale& scale, const Limits& limits) {
  print_heading("Attention alone, prefill, bfloat16, free");
  for (const AttentionShape& shape :
       in_all_heads({.context = scale.prompt, .num_rows = scale.prompt})) {
    AttentionLoad load(ops, shape);
    const double done = load.operations() / attention_seconds(ops, load);
    print({describe(shape), done / 1e12, "TFLOP/s", "matmul peak", limits.peak / 1e12,
           at_least(0.6)});
  }
}

// The sum over layers, and the logits, of what the slower of memory and arithmetic needs.
double least_step_seconds(const ModelConfig& config, const Limits& limits, double batch,
                          double context) {
  const auto least = [&](double weights, double kv_bytes, double attention) {
    const double bytes = 2 * weights + kv_bytes;
    return std::max(bytes / limits.bandwidth, (2 * weights * batch + attention) / limits.peak);
  };
  const double embedding = double{1} * config.vocabulary_size * config.hidden_size;
  const double layers = static_cast<double>(num_parameters(config)) -
                        (config.tie_word_embeddings ? 1 : 2) * embedding;
  const double seen = batch * context * config.head_dim;
  const double layer = least(layers / config.num_layers, 4 * seen * config.num_kv_heads,
                             4 * seen * config.num_heads);
  return config.num_layers * layer + least(embedding, 0, 0);
}

// What a step takes where its operations find the device busy with something else, which leaves the
// host time to ask for all of them: no less than the device works. What else there was is known
// from steps with twice as much of it: alone it may run at other clocks.
double busy_seconds(Driver& driver, const StreamShape& streams, double step, const Scale& scale) {
  bench::ProductLoad load(driver.ops(), {scale.square, scale.square, scale.square});
  const int num_loads = static_cast<int>(step / load.seconds()) + 1;
  const auto beside = [&](int loads) {
    const DecodeTimes times = decode(driver, streams, scale.decode_steps, [&] {
      for (int i = 0; i < loads; ++i) load.run();
    });
    return quantile(times.steps, 0.5);
  };
  return 2 * beside(num_loads) - beside(2 * num_loads);
}

// Whether the blocks hold the streams, the first of which decode while others are prefilled.
bool has_room(const Driver& driver, const StreamShape& streams, int steps) {
  const ServingPlan& plan = driver.loaded().plan;
  const int64_t tokens = int64_t{streams.batch} * streams.prompt_tokens;
  // Half of a step's rows at least are left for prompts.
  const int64_t grown = 2 * tokens / plan.scheduler.max_batched_rows + 2 * steps + 100;
  return streams.prompt_tokens + grown <= plan.max_context &&
         tokens + streams.batch * grown <= plan.geometry.capacity_tokens;
}

void bench_step(Driver& driver, const StreamShape& streams, const Scale& scale,
                const Limits& limits) {
  const DecodeTimes times = decode(driver, streams, scale.decode_steps);
  const double step = quantile(times.steps, 0.5);
  const double context = times.tokens / streams.batch;
  const double least = least_step_seconds(driver.loaded().config, limits, streams.batch, context);
  print({absl::StrCat("batch ", streams.batch, ", context ", static_cast<int>(context), ": a step"),
         1e6 * step, "us", "what its layers need", 1e6 * least, at_most(1 / 0.85)});
  const double busy = busy_seconds(driver, streams, step, scale);
  print({"  share of it that the device waits for the host", 100 * (1 - busy / step), "%", "", 0,
         streams.batch >= 8 ? at_most(2) : Goal{}});
}

void bench_steps(const std::vector<std::string>& models, const std::vector<int>& contexts,
                 const Scale& scale, const Limits& limits) {
  for (const std::string& model : models) {
    print_heading(absl::StrCat("Decode, shape of ", model, ", bfloat16, free"));
    const auto driver = open_driver({.folder = "tests/bench/models/" + model,
                                     .cuda_device = scale.cuda_device,
                                     .max_num_seqs = scale.batches.back(),
                                     .kv_cache_bytes = scale.kv_bytes});
    for (const int batch : scale.batches) {
      for (const int context : contexts) {
        const StreamShape streams{
            .batch = batch, .prompt_tokens = context, .has_idle_prompts = true};
        if (has_room(*driver, streams, scale.decode_steps)) {
          bench_step(*driver, streams, scale, limits);
        }
      }
    }
  }
}

constexpr std::array<const char*, 4> kParts = {"decode-attention", "prefill-attention", "steps",
                                               "large-steps"};

void run(const Scale& scale, const std::string& only) {
  const auto wanted = [&only](const char* part) { return only.empty() || only == part; };
  const std::shared_ptr<Ops> ops = open_bench_ops(scale.cuda_device);
  const Limits limits = measure_limits(ops, scale);
  if (wanted("decode-attention")) bench_decode_attention(*ops, scale, limits);
  if (wanted("prefill-attention")) bench_prefill_attention(*ops, scale, limits);
  if (wanted("steps")) bench_steps(scale.small, scale.small_contexts, scale, limits);
  // Minutes: only where it is named.
  if (only == "large-steps") bench_steps(scale.large, scale.large_contexts, scale, limits);
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
    scale = {.folder = "tests/bench/models/demo-ordinary",
             .copy_bytes = int64_t{1} << 20,
             .square = 64,
             .histories = {{.num_sequences = 4, .context = 100}},
             .prompt = 100,
             .small = {"demo-ordinary"},
             .batches = {1, 2},
             .small_contexts = {20},
             .decode_steps = 2,
             .kv_bytes = uint64_t{16} << 20};
  }
  scale.cuda_device = arguments.cuda_device;
  lckv::run(scale, arguments.only);
  return 0;
}
