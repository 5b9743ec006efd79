#include "worker/serving_plan.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "rpc/byte_size.h"

namespace lckv {
namespace {

// Bitwise settling in float32 is nearly serial: a wide window would only repeat work.
constexpr int32_t kReproducibleLookahead = 512;
constexpr int32_t kReproducibleFloat32Lookahead = 16;

// Half a unit in the last place of the KV's format: what rounding it loses anyway.
float default_tolerance(DType kv) {
  switch (kv) {
    case DType::kFloat32:
      break;
    case DType::kBFloat16:
      return 0x1p-9F;
    case DType::kFloat16:
      return 0x1p-12F;
  }
  return 0.0F;
}

// Nothing for auto.
std::optional<DType> asked_dtype(NumberFormat format) {
  switch (format) {
    case NumberFormat::kAuto:
      break;
    case NumberFormat::kFloat32:
      return DType::kFloat32;
    case NumberFormat::kBFloat16:
      return DType::kBFloat16;
    case NumberFormat::kFloat16:
      return DType::kFloat16;
  }
  return std::nullopt;
}

absl::StatusOr<DType> choose_dtype(const WorkerConfig& config, const ModelConfig& model) {
  const std::optional<DType> asked = asked_dtype(config.dtype);
  const DType dtype = asked.value_or(model.torch_dtype.value_or(DType::kFloat32));
  if (dtype == DType::kFloat16 && config.device == Device::kCpu) {
    return absl::InvalidArgumentError(
        absl::StrCat(asked ? "--dtype float16" : "config.json: torch_dtype: float16",
                     " is not computed with on --device cpu; give --dtype float32 or bfloat16"));
  }
  return dtype;
}

absl::Status check_kv_dtype(const WorkerConfig& config, DType dtype) {
  if (asked_dtype(config.kv_cache_dtype).value_or(dtype) == dtype) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--kv-cache-dtype must be what the model computes in, which is ", dtype_name(dtype)));
}

absl::StatusOr<int32_t> choose_lookahead(const WorkerConfig& config, const ServingPlan& plan) {
  const int32_t most = config.max_num_batched_tokens;
  if (config.prefill_lookahead > most && plan.reproducible) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--prefill-lookahead ", config.prefill_lookahead, " exceeds --max-num-batched-tokens ",
        most, ": in reproducible mode a walk takes its whole window in one step"));
  }
  if (config.prefill_lookahead > 0 || !plan.reproducible) return config.prefill_lookahead;
  return std::min(
      plan.dtype == DType::kFloat32 ? kReproducibleFloat32Lookahead : kReproducibleLookahead, most);
}

// The longest context up to `wanted` of which one sequence fits into the blocks.
int32_t longest_context(const MemoryGeometry& geometry, int32_t wanted) {
  int32_t fits = 0;
  int32_t too_long = wanted + 1;
  while (too_long - fits > 1) {
    const int32_t middle = fits + (too_long - fits) / 2;
    (geometry.blocks_of(middle) <= geometry.num_blocks ? fits : too_long) = middle;
  }
  return fits;
}

}  // namespace

int32_t wanted_context(const WorkerConfig& config, const ModelConfig& model) {
  return config.max_model_len > 0 ? config.max_model_len : model.max_position_embeddings;
}

namespace {

// Context and memory, of which each limits the other.
absl::Status choose_memory(const WorkerConfig& config, const ModelConfig& model,
                           const PassPlan& passes, ServingPlan& plan) {
  if (config.max_model_len > model.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-model-len ", config.max_model_len, " exceeds the checkpoint's ",
                     model.max_position_embeddings, " (config.json: max_position_embeddings)"));
  }
  const int32_t wanted = wanted_context(config, model);
  GeometryOptions options = {
      .kv_cache_bytes = config.kv_cache_bytes,
      .swap_bytes = config.swap_bytes,
      .block_size = config.block_size,
      .kv_dtype = plan.dtype,
      .hidden_size = model.hidden_size,
      .max_context = wanted,
      .max_num_seqs = config.max_num_seqs,
      .staging_rows = config.staging_rows,
      .window_rows = plan.reproducible ? plan.scheduler.prefill_lookahead : 1};
  auto geometry = plan_memory(passes, options);
  if (!geometry.ok()) return geometry.status();
  plan.max_context = longest_context(*geometry, wanted);
  if (plan.max_context < wanted) {
    plan.warnings.push_back(absl::StrCat(
        "the longest context is ", plan.max_context, " tokens instead of ", wanted,
        ": more do not fit --kv-cache-memory ", format_byte_size(config.kv_cache_bytes)));
    options.max_context = plan.max_context;
    geometry = plan_memory(passes, options);
    if (!geometry.ok()) return geometry.status();
  }
  plan.geometry = *std::move(geometry);
  return absl::OkStatus();
}

void fill_scheduler(const WorkerConfig& config, const ModelConfig& model, ServingPlan& plan) {
  SchedulerOptions& scheduler = plan.scheduler;
  scheduler.max_num_seqs = config.max_num_seqs;
  scheduler.max_waiting = config.max_waiting;
  scheduler.max_row_layers = int64_t{config.max_num_batched_tokens} * model.num_layers;
  scheduler.max_batched_rows = config.max_num_batched_tokens;
  scheduler.max_context = plan.max_context;
  scheduler.num_blocks = plan.geometry.num_blocks;
  scheduler.num_host_blocks = plan.geometry.num_host_blocks;
  scheduler.slots_per_block = plan.geometry.slots_per_block;
  scheduler.staging_rows = plan.geometry.staging_rows;
  scheduler.reproducible = plan.reproducible;
  scheduler.prefill_tolerance = config.prefill_tolerance.value_or(default_tolerance(plan.dtype));
  scheduler.prefix_caching = config.enable_prefix_caching;
  scheduler.official_decode = config.compatibility == Compatibility::kOfficialDecode;
}

void fill_runner(ServingPlan& plan) {
  plan.runner = {.max_num_seqs = plan.scheduler.max_num_seqs,
                 .max_batched_rows = plan.scheduler.max_batched_rows,
                 .max_context = plan.max_context,
                 .num_blocks = plan.geometry.num_blocks,
                 .num_host_blocks = plan.geometry.num_host_blocks,
                 .block_bytes = plan.geometry.block_bytes,
                 .slots_per_block = plan.geometry.slots_per_block,
                 .staging_rows = plan.scheduler.staging_rows};
}

}  // namespace

std::string served_name(const WorkerConfig& config) {
  if (!config.served_model_name.empty()) return config.served_model_name;
  // "." has a name only as an absolute path; where there is none the folder's is as good as any.
  std::error_code error;
  std::filesystem::path path = std::filesystem::absolute(config.model, error);
  if (error) path = config.model;
  path = path.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

absl::StatusOr<ServingPlan> plan_serving(const WorkerConfig& config, const ModelConfig& model,
                                         const PassPlan& passes) {
  ServingPlan plan;
  plan.model_name = served_name(config);
  const auto dtype = choose_dtype(config, model);
  if (!dtype.ok()) return dtype.status();
  plan.dtype = *dtype;
  if (absl::Status status = check_kv_dtype(config, plan.dtype); !status.ok()) return status;
  plan.reproducible = config.reproducible == Choice::kOn ||
                      (config.reproducible == Choice::kAuto && plan.dtype == DType::kFloat32);
  plan.max_logprobs = config.max_logprobs < 0
                          ? model.vocabulary_size
                          : std::min(config.max_logprobs, model.vocabulary_size);
  const auto lookahead = choose_lookahead(config, plan);
  if (!lookahead.ok()) return lookahead.status();
  plan.scheduler.prefill_lookahead = *lookahead;
  if (absl::Status status = choose_memory(config, model, passes, plan); !status.ok()) {
    return status;
  }
  fill_scheduler(config, model, plan);
  fill_runner(plan);
  return plan;
}

}  // namespace lckv
