// lckv plan: what a config's layer map saves, before anything is loaded. Needs no router.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/commands.h"
#include "client/kv_plan.h"
#include "client/text_table.h"
#include "nlohmann/json.hpp"
#include "rpc/byte_size.h"
#include "rpc/flags.h"
#include "worker/kv/block_size.h"
#include "worker/model/model_config.h"

namespace lckv {
namespace {

enum class KvDType : uint8_t { kAuto, kFloat32, kBFloat16, kFloat16 };

struct PlanOptions {
  std::string config;
  uint64_t kv_cache_bytes = uint64_t{4} << 30;
  int64_t block_size = 16;
  int64_t length = 0;  // 0: the model's context
  KvDType kv_dtype = KvDType::kAuto;
  bool json = false;
};

absl::StatusOr<ModelConfig> read_config(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path given(path);
  const auto file = std::filesystem::is_directory(given, ignored) ? given / "config.json" : given;
  std::ifstream stream(file, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(stream)), {});
  if (!stream.is_open() || stream.bad() || text.empty()) {
    return absl::NotFoundError(absl::StrCat("cannot read \"", file.string(), "\""));
  }
  return parse_model_config(text, "");
}

DType kv_dtype(KvDType asked, const ModelConfig& config) {
  if (asked == KvDType::kFloat32) return DType::kFloat32;
  if (asked == KvDType::kBFloat16) return DType::kBFloat16;
  if (asked == KvDType::kFloat16) return DType::kFloat16;
  return config.torch_dtype.value_or(DType::kFloat32);  // as lckv-worker
}

nlohmann::json plan_json(const KvPlan& plan) {
  return {{"cached_layers", plan.num_cached_layers},
          {"bytes_per_token", plan.bytes_per_token},
          {"blocks", plan.num_blocks},
          {"capacity_tokens", plan.capacity_tokens},
          {"batch", plan.batch}};
}

std::string ratio(int64_t of, int64_t to) {
  return to == 0 ? "-" : absl::StrFormat("%.2f", static_cast<double>(of) / static_cast<double>(to));
}

std::string plan_table(const KvPlan& shared, const KvPlan& ordinary) {
  const auto row = [](const std::string& name, int64_t first, int64_t second) {
    return std::vector<std::string>{name, absl::StrCat(first), absl::StrCat(second),
                                    ratio(first, second)};
  };
  return format_table({{"", "this map", "ordinary", "ratio"},
                       row("cached layers", shared.num_cached_layers, ordinary.num_cached_layers),
                       row("KV bytes per token", shared.bytes_per_token, ordinary.bytes_per_token),
                       row("capacity in tokens", shared.capacity_tokens, ordinary.capacity_tokens),
                       row("sequences at once", shared.batch, ordinary.batch)});
}

absl::Status run_plan(const PlanOptions& options) {
  const absl::StatusOr<ModelConfig> config = read_config(options.config);
  if (!config.ok()) return config.status();
  const KvPlanOptions memory{
      .kv_cache_bytes = options.kv_cache_bytes,
      .block_size = options.block_size,
      .length = options.length == 0 ? config->max_position_embeddings : options.length,
      .dtype = kv_dtype(options.kv_dtype, *config)};
  const KvPlan shared = plan_kv(config->layers, memory);
  const KvPlan ordinary = plan_kv(ordinary_layers(config->layers), memory);
  if (options.json) {
    std::cout << nlohmann::json{{"architecture", config->architecture},
                                {"layers", config->num_layers},
                                {"kv_cache_dtype", dtype_name(memory.dtype)},
                                {"kv_cache_bytes", memory.kv_cache_bytes},
                                {"length", memory.length},
                                {"this", plan_json(shared)},
                                {"ordinary", plan_json(ordinary)}}
              << std::endl;
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat(
                   "%s, %d layers, KV in %s, %s of KV memory, sequences of %d tokens\n\n",
                   config->architecture, config->num_layers, dtype_name(memory.dtype),
                   format_byte_size(memory.kv_cache_bytes), memory.length)
            << plan_table(shared, ordinary);
  return absl::OkStatus();
}

}  // namespace

Command add_plan(CLI::App& program) {
  const auto options = std::make_shared<PlanOptions>();
  CLI::App* app = program.add_subcommand(
      "plan", "KV memory of a config: capacity and batch, beside ordinary keys and values");
  app->add_option("config", options->config, "A checkpoint's folder, or its config.json")
      ->required();
  add_byte_size(*app, "--kv-cache-memory", options->kv_cache_bytes, "KV memory of a replica");
  app->add_option("--block-size", options->block_size, "Tokens per block of the largest slot")
      ->check(CLI::Validator(
          [](const std::string& text) {
            int64_t tokens = 0;
            return absl::SimpleAtoi(text, &tokens) && is_block_size(tokens)
                       ? std::string()
                       : absl::StrCat(text, " is not a power of two from 1 to ", kMaxBlockSize);
          },
          ""))
      ->capture_default_str();
  app->add_option("--length", options->length, "Tokens of each sequence; 0: the model's longest")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_enum<KvDType>(*app, "--kv-cache-dtype", options->kv_dtype,
                    {{"auto", KvDType::kAuto},
                     {"float32", KvDType::kFloat32},
                     {"bfloat16", KvDType::kBFloat16},
                     {"float16", KvDType::kFloat16}},
                    "Number format of keys and values; auto: the checkpoint's");
  app->add_flag("--json", options->json, "Print one JSON object");
  return {app, [options] { return run_plan(*options); }};
}

}  // namespace lckv
