#include "worker/startup.h"

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cuda/cuda_collectives.h"
#include "kernels/cuda/cuda_ops.h"
#include "rpc/byte_size.h"
#include "rpc/logging.h"
#include "worker/engine/numerics.h"
#include "worker/model/llama.h"
#include "worker/model/load_progress.h"
#include "worker/model/weight_store.h"

namespace lckv {
namespace {

absl::StatusOr<std::unique_ptr<WeightStore>> open_store(const WorkerConfig& config,
                                                        const LoadedModel& loaded) {
  if (config.load_format == LoadFormat::kAuto) {
    return WeightStore::open(config.model, loaded.config, loaded.shard);
  }
  const int32_t cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  return WeightStore::dummy(
      loaded.config, {.dtype = loaded.plan.dtype,
                      .num_threads = config.threads > 0 ? config.threads : std::max(cores, 1),
                      .shard = loaded.shard});
}

std::string numerics_of(const LoadedModel& loaded) {
  const SchedulerOptions& scheduler = loaded.plan.scheduler;
  return describe_numerics(*loaded.ops, {.reproducible = loaded.plan.reproducible,
                                         .prefill_lookahead = scheduler.prefill_lookahead,
                                         .prefill_tolerance = scheduler.prefill_tolerance,
                                         .official_decode = scheduler.official_decode,
                                         .tensor_parallel_size = loaded.shard.size});
}

std::string layer_map_text(const LayerPlan& map) {
  std::string text = absl::StrCat("passes=", map.num_passes);
  for (const auto& [source, window, num_sinks, self_excluding, kv_heads, head_dim] : map.layers) {
    absl::StrAppend(&text, ";", source, ",", window, ",", num_sinks, ",", self_excluding, ",",
                    kv_heads, ",", head_dim);
  }
  return text;
}

std::string step_limits_text(const RunnerOptions& runner) {
  return absl::StrCat("seqs=", runner.max_num_seqs, ";rows=", runner.max_batched_rows,
                      ";context=", runner.max_context, ";blocks=", runner.num_blocks,
                      ";host_blocks=", runner.num_host_blocks, ";block_bytes=", runner.block_bytes,
                      ";slots=", absl::StrJoin(runner.slots_per_block, ","),
                      ";staging=", runner.staging_rows);
}

std::string random_id() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

struct CudaBackend {
  absl::StatusOr<std::unique_ptr<Ops>> (*open)(const CudaOpsOptions&) = nullptr;
  absl::StatusOr<std::unique_ptr<Collectives>> (*connect)(const CudaCollectivesOptions&,
                                                          Ops&) = nullptr;
};
#ifdef LCKV_CUDA
constexpr CudaBackend kCudaBackend{.open = open_cuda_ops, .connect = connect_cuda_ranks};
#else
absl::Status lacks_cuda() {
  return absl::FailedPreconditionError("--device cuda: this lckv-worker was built without CUDA");
}
constexpr CudaBackend kCudaBackend{
    .open = [](const CudaOpsOptions&) -> absl::StatusOr<std::unique_ptr<Ops>> {
      return lacks_cuda();
    },
    .connect = [](const CudaCollectivesOptions&,
                  Ops&) -> absl::StatusOr<std::unique_ptr<Collectives>> { return lacks_cuda(); }};
#endif

void log_offload(const WorkerConfig& config, const LoadedModel& loaded) {
  const OffloadPlan& offload = loaded.offload;
  if (offload.layers.empty()) {
    spdlog::warn("--cpu-offload-gb {} frees nothing: of {} layers, {} slots would hold as much",
                 config.cpu_offload_gb, loaded.config.num_layers, kOffloadSlots);
    return;
  }
  // What is in host memory is what a step of all layers copies.
  log_fields(spdlog::level::info, "weight offload",
             {{"layers", absl::StrCat(offload.layers.size(), " of ", loaded.config.num_layers)},
              {"copied_per_step", format_byte_size(offload.host_bytes)},
              {"slots", format_byte_size(kOffloadSlots * offload.slot_bytes)},
              {"freed", format_byte_size(offload.freed_bytes())}});
}

// Before the weights are loaded. NCCL wants an exchange recorded by all ranks or by none.
bool repeats_batches(const WorkerConfig& config, const LoadedModel& loaded) {
  return !config.enforce_eager && loaded.offload.layers.empty();
}

void fill_defaults(internal::v1::GenerationDefaults& to, const GenerationDefaults& from) {
  if (from.temperature) to.set_temperature(*from.temperature);
  if (from.top_k) to.set_top_k(*from.top_k);
  if (from.top_p) to.set_top_p(*from.top_p);
  if (from.min_p) to.set_min_p(*from.min_p);
  if (from.repetition_penalty) to.set_repetition_penalty(*from.repetition_penalty);
  if (from.max_new_tokens) to.set_max_new_tokens(*from.max_new_tokens);
}

}  // namespace

TensorShard shard_of(const WorkerConfig& config) {
  return {.rank = std::max(config.rank, 0), .size = config.tensor_parallel_size};
}

absl::StatusOr<LoadedModel> read_model(const WorkerConfig& config, TensorShard shard) {
  LoadedModel loaded{.shard = shard};
  auto files = read_checkpoint_files(config.model);
  if (!files.ok()) return files.status();
  loaded.files = *std::move(files);
  auto model_config = parse_model_config(loaded.files.config, loaded.files.generation_config);
  if (!model_config.ok()) return model_config.status();
  loaded.config = *std::move(model_config);
  if (absl::Status status = check_tensor_parallel(loaded.config, shard.size); !status.ok()) {
    return status;
  }
  loaded.passes = make_pass_plan(shard_layers(loaded.config.layers, shard.size));
  if (absl::Status status = update_plan(config, loaded); !status.ok()) return status;
  loaded.offload =
      plan_llama_offload(loaded.config, loaded.passes, shard.size, loaded.plan.dtype,
                         static_cast<uint64_t>(config.cpu_offload_gb * (uint64_t{1} << 30)));
  return loaded;
}

absl::Status update_plan(const WorkerConfig& config, LoadedModel& loaded) {
  auto plan = plan_serving(config, loaded.config, loaded.passes);
  if (!plan.ok()) return plan.status();
  loaded.plan = *std::move(plan);
  loaded.plan.runner.counts_kv_heads =
      is_first_with_kv_heads(loaded.config.num_kv_heads, loaded.shard);
  if (loaded.ops != nullptr) loaded.plan.scheduler.free_rows = loaded.ops->free_rows();
  return absl::OkStatus();
}

uint64_t known_device_bytes(const WorkerConfig& config, const LoadedModel& loaded) {
  const uint64_t share = static_cast<uint64_t>(weight_bytes(loaded.config, loaded.plan.dtype)) /
                         static_cast<uint64_t>(loaded.shard.size);
  // Of few KV heads a rank may hold, and free, more than its share.
  const uint64_t weights = share - std::min(share, loaded.offload.freed_bytes());
  if (!config.kv_cache_given) return weights;
  const MemoryGeometry& geometry = loaded.plan.geometry;
  return weights +
         static_cast<uint64_t>(geometry.num_blocks * geometry.block_bytes + geometry.staging_bytes);
}

absl::Status open_device(const WorkerConfig& config, LoadedModel& loaded) {
  ServingPlan& plan = loaded.plan;
  if (config.device == Device::kCuda) {
    auto ops = kCudaBackend.open({.device = device_of_rank(config),
                                  .dtype = plan.dtype,
                                  .reproducible = plan.reproducible,
                                  .records_batches = repeats_batches(config, loaded),
                                  .required_bytes = known_device_bytes(config, loaded),
                                  .head_dim = loaded.config.head_dim});
    if (!ops.ok()) return ops.status();
    loaded.ops = *std::move(ops);
  } else {
    loaded.ops = open_cpu_ops(
        {.dtype = plan.dtype, .threads = config.threads, .reproducible = plan.reproducible});
  }
  plan.scheduler.free_rows = loaded.ops->free_rows();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Collectives>> connect_gpus(const CudaCollectivesOptions& options,
                                                          Ops& ops) {
  return kCudaBackend.connect(options, ops);
}

absl::Status open_weights(const WorkerConfig& config, LoadedModel& loaded) {
  const absl::Time began = absl::Now();
  auto weights = open_store(config, loaded);
  if (!weights.ok()) return weights.status();
  loaded.weights = *std::move(weights);
  // Before the weights are packed: then their memory is given back.
  loaded.content = content_fingerprint(loaded.files, *loaded.weights);
  loaded.numerics = numerics_of(loaded);
  loaded.fingerprint = absl::StrCat(loaded.content, "-", short_fingerprint(loaded.numerics));
  loaded.load_time = absl::Now() - began;
  return absl::OkStatus();
}

RankIdentity make_identity(const WorkerConfig& config, const LoadedModel& loaded) {
  return {.rank = loaded.shard.rank,
          .world_size = loaded.shard.size,
          .life = config.life,
          .version = LCKV_VERSION,
          .model = loaded.content,
          .layer_map = short_fingerprint(layer_map_text(loaded.config.layers)),
          .numerics = loaded.numerics,
          .step_limits = absl::StrCat(step_limits_text(loaded.plan.runner),
                                      ";graphs=", repeats_batches(config, loaded))};
}

absl::Status load_weights(const WorkerConfig& config, std::unique_ptr<Collectives> ranks,
                          LoadedModel& loaded) {
  const absl::Time began = absl::Now();
  loaded.ranks = std::move(ranks);
  const uint64_t total_bytes = loaded.weights->total_bytes();
  loaded.replicated_bytes = loaded.weights->replicated_bytes();
  LoadProgress progress = LoadProgress::to_stderr("Loading weights", total_bytes);
  auto model = load_llama({.max_rows = config.max_num_batched_tokens,
                           .max_positions = wanted_context(config, loaded.config),
                           .offload = loaded.offload,
                           .progress = [&progress](uint64_t done) { progress.update(done); },
                           .ranks = loaded.ranks.get()},
                          loaded.config, loaded.passes, std::move(loaded.weights), *loaded.ops);
  if (!model.ok()) return model.status();
  loaded.model = *std::move(model);
  loaded.weight_bytes = loaded.model->weight_bytes();
  loaded.load_time += absl::Now() - began;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ModelRunner>> make_runner(LoadedModel& loaded) {
  return ModelRunner::create(loaded.plan.runner, loaded.passes, std::move(loaded.model),
                             std::move(loaded.ops), std::move(loaded.ranks));
}

internal::v1::Hello make_hello(const LoadedModel& loaded) {
  internal::v1::Hello hello;
  hello.set_replica_id(random_id());
  hello.set_model(loaded.plan.model_name);
  hello.set_architecture(loaded.config.architecture);
  hello.set_fingerprint(loaded.fingerprint);
  hello.set_version(LCKV_VERSION);
  hello.set_tensor_parallel_size(loaded.shard.size);
  hello.set_vocabulary_size(loaded.config.vocabulary_size);
  hello.set_max_context_tokens(loaded.plan.max_context);
  // What was asked for as "the vocabulary" is told so.
  hello.set_max_logprobs(
      loaded.plan.max_logprobs == loaded.config.vocabulary_size ? -1 : loaded.plan.max_logprobs);
  hello.set_num_layers(loaded.config.num_layers);
  for (const LayerSpec& layer : loaded.config.layers.layers) {
    hello.add_kv_source_layers(layer.source);
  }
  hello.set_num_cached_layers(loaded.passes.num_units());
  hello.set_prefill_passes(loaded.passes.num_passes);
  hello.set_weight_dtype(dtype_name(loaded.plan.dtype));
  hello.set_kv_cache_dtype(dtype_name(loaded.plan.dtype));
  // Of the model, not of this rank.
  hello.set_kv_bytes_per_token(static_cast<double>(
      bytes_per_token(make_pass_plan(loaded.config.layers), loaded.plan.dtype)));
  hello.set_block_tokens(*std::min_element(loaded.plan.geometry.slots_per_block.begin(),
                                           loaded.plan.geometry.slots_per_block.end()));
  hello.set_kv_capacity_tokens(loaded.plan.geometry.capacity_tokens);
  for (const int32_t id : loaded.config.eos_token_ids) hello.add_eos_token_ids(id);
  if (loaded.config.bos_token_id) hello.set_bos_token_id(*loaded.config.bos_token_id);
  fill_defaults(*hello.mutable_generation_defaults(), loaded.config.generation);
  if (!loaded.files.tokenizer_model.empty()) {
    hello.mutable_tokenizer()->set_sentencepiece_model(loaded.files.tokenizer_model);
    hello.mutable_tokenizer()->set_config_json(loaded.files.tokenizer_config);
  }
  hello.set_chat_template(loaded.files.chat_template);
  return hello;
}

SubmitLimits make_limits(const WorkerConfig& config, const LoadedModel& loaded) {
  return {.vocabulary = loaded.config.vocabulary_size,
          .max_context = loaded.plan.max_context,
          .max_logprobs = loaded.plan.max_logprobs,
          .max_iterated_prompt = loaded.plan.scheduler.staging_rows,
          .has_cyclic_groups = loaded.passes.num_groups() > 0,
          .default_prefill_mode = config.prefill_mode,
          .eos_token_ids = loaded.config.eos_token_ids};
}

KvGeometry metrics_geometry(const WorkerConfig& config, const LoadedModel& loaded) {
  return {.block_tokens = config.block_size,
          .capacity_tokens = loaded.plan.geometry.capacity_tokens,
          .bytes_per_token = static_cast<double>(loaded.plan.geometry.bytes_per_token),
          .num_layers = loaded.config.num_layers,
          .num_cached_layers = loaded.passes.num_units(),
          .max_context = loaded.plan.max_context,
          .max_row_layers = loaded.plan.scheduler.max_row_layers,
          .max_running = loaded.plan.scheduler.max_num_seqs,
          .max_waiting = loaded.plan.scheduler.max_waiting};
}

void log_geometry(const WorkerConfig& config, const LoadedModel& loaded) {
  const MemoryGeometry& geometry = loaded.plan.geometry;
  for (const std::string& warning : loaded.plan.warnings) spdlog::warn("{}", warning);
  log_fields(spdlog::level::info, "model",
             {{"name", loaded.plan.model_name},
              {"architecture", loaded.config.architecture},
              {"parameters", absl::StrCat(num_parameters(loaded.config))},
              {"weights", format_byte_size(loaded.weight_bytes)},
              {"dtype", dtype_name(loaded.plan.dtype)},
              {"rank", absl::StrCat(loaded.shard.rank, " of ", loaded.shard.size)},
              {"replicated_weights", format_byte_size(loaded.replicated_bytes)},
              {"reproducible", loaded.plan.reproducible ? "yes" : "no"},
              {"numerics", loaded.ops == nullptr ? "" : loaded.ops->numerics()},
              {"fingerprint", loaded.fingerprint}});
  if (config.cpu_offload_gb > 0) log_offload(config, loaded);
  const SchedulerOptions& scheduler = loaded.plan.scheduler;
  log_fields(
      spdlog::level::info, "prefill",
      {{"cyclic_groups", absl::StrCat(loaded.passes.num_groups())},
       {"lookahead",
        scheduler.prefill_lookahead > 0 ? absl::StrCat(scheduler.prefill_lookahead) : "by cost"},
       {"tolerance", absl::StrCat(scheduler.prefill_tolerance)},
       {"staging_rows", absl::StrCat(scheduler.staging_rows)},
       {"staging_memory", format_byte_size(static_cast<uint64_t>(geometry.staging_bytes))}});
  const double longest = static_cast<double>(geometry.num_blocks) /
                         static_cast<double>(geometry.blocks_of(loaded.plan.max_context));
  log_fields(spdlog::level::info, "KV memory",
             {{"budget", format_byte_size(config.kv_cache_bytes)},
              {"layers", absl::StrCat(loaded.config.num_layers)},
              {"cached_layers", absl::StrCat(loaded.passes.num_units())},
              {"bytes_per_token", absl::StrCat(geometry.bytes_per_token)},
              {"blocks", absl::StrCat(geometry.num_blocks)},
              {"block_bytes", absl::StrCat(geometry.block_bytes)},
              {"host_blocks", absl::StrCat(geometry.num_host_blocks)},
              {"capacity_tokens", absl::StrCat(geometry.capacity_tokens)},
              {"longest_request_tokens", absl::StrCat(loaded.plan.max_context)},
              {"longest_requests_at_once", absl::StrFormat("%.1f", longest)}});
}

}  // namespace lckv
