#include "tests/support/local_runner.h"

#include <bit>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "kernels/collectives.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/weight_values.h"
#include "worker/model/checkpoint_files.h"
#include "worker/model/llama.h"

namespace lckv {
namespace {

std::unique_ptr<Ops> open_ops(const LocalOptions& options) {
  if (options.open_ops) return options.open_ops(options);
  return open_cpu_ops(
      {.dtype = options.dtype, .threads = options.threads, .reproducible = options.reproducible});
}

}  // namespace

absl::StatusOr<LocalRunner> open_local_runner(const LocalOptions& options,
                                              std::unique_ptr<Collectives> ranks) {
  LocalRunner local;
  if (ranks == nullptr) ranks = single_rank_collectives();
  const TensorShard shard{.rank = ranks->rank(), .size = ranks->size()};
  auto files = read_checkpoint_files(options.model);
  if (!files.ok()) return files.status();
  auto config = parse_model_config(files->config, files->generation_config);
  if (!config.ok()) return config.status();
  local.config = *std::move(config);
  absl::Status status = check_tensor_parallel(local.config, shard.size);
  if (!status.ok()) return status;
  local.passes = make_pass_plan(shard_layers(local.config.layers, shard.size));
  auto weights = options.dummy ? WeightStore::dummy(local.config, {options.dtype, 0, 1, shard})
                               : WeightStore::open(options.model, local.config, shard);
  if (!weights.ok()) return weights.status();
  local.checkpoint_bytes = (*weights)->total_bytes();
  local.replicated_bytes = (*weights)->replicated_bytes();
  GeometryOptions sizes{.kv_cache_bytes = uint64_t{1} << 36,
                        .block_size = options.block_size,
                        .kv_dtype = options.dtype,
                        .hidden_size = local.config.hidden_size,
                        .max_context = options.max_context,
                        .max_num_seqs = options.max_num_seqs,
                        .staging_rows = options.staging_rows};
  auto geometry = plan_memory(local.passes, sizes);
  if (!geometry.ok()) return geometry.status();
  local.geometry = *std::move(geometry);

  auto ops = std::make_unique<ProbedOps>(open_ops(options), options.fill);
  local.ops = ops.get();
  const LlamaOptions llama{.max_rows = options.max_batched_rows,
                           .max_positions = options.max_context,
                           .offload = plan_llama_offload(local.config, local.passes, shard.size,
                                                         options.dtype, options.offload_bytes),
                           .ranks = ranks.get()};
  auto model = load_llama(llama, local.config, local.passes, *std::move(weights), *ops);
  if (!model.ok()) return model.status();
  local.weight_bytes = (*model)->weight_bytes();
  RunnerOptions runner{.max_num_seqs = options.max_num_seqs,
                       .max_batched_rows = options.max_batched_rows,
                       .max_context = options.max_context,
                       .num_blocks = options.num_blocks,
                       .num_host_blocks = options.num_host_blocks,
                       .block_bytes = local.geometry.block_bytes,
                       .slots_per_block = local.geometry.slots_per_block,
                       .staging_rows = options.staging_rows,
                       .counts_kv_heads = is_first_with_kv_heads(local.config.num_kv_heads, shard)};
  auto created = ModelRunner::create(std::move(runner), local.passes, *std::move(model),
                                     std::move(ops), std::move(ranks));
  if (!created.ok()) return created.status();
  local.runner = *std::move(created);
  return local;
}

std::vector<float> read_slot(const LocalRunner& local, UnitId unit, int32_t block, int32_t slot,
                             bool values) {
  const LayerSpec& spec = local.passes.layers.layers[local.passes.units[raw(unit)].layer];
  const int32_t slots = local.geometry.slots_per_block[raw(unit)];
  const DType dtype = local.ops->dtype();
  const std::byte* const base = local.ops->block_base() + block * local.geometry.block_bytes;
  std::vector<float> row;
  std::vector<std::byte> numbers(spec.head_dim * dtype_bytes(dtype));
  for (int32_t head = 0; head < spec.kv_heads; ++head) {
    const int64_t at = (int64_t{values ? spec.kv_heads : 0} + head) * slots + slot;
    local.ops->copy(base + at * static_cast<int64_t>(numbers.size()), numbers.data(),
                    numbers.size());
    for (int32_t i = 0; i < spec.head_dim; ++i) {
      row.push_back(weight_value({.data = numbers.data(), .dtype = dtype}, i));
    }
  }
  return row;
}

}  // namespace lckv
