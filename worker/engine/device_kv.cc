#include "worker/engine/device_kv.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace lckv {

absl::StatusOr<std::unique_ptr<DeviceKv>> DeviceKv::create(const RunnerOptions& options,
                                                           const PassPlan& passes,
                                                           int32_t hidden_size, Ops& ops) {
  try {
    std::unique_ptr<DeviceKv> kv(new DeviceKv(options, passes, ops));
    kv->allocate(options, passes, hidden_size);
    return kv;
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("not enough memory for ", options.num_blocks, " KV blocks of ",
                     options.block_bytes, " bytes, ", options.num_host_blocks,
                     " on the host (--swap-space), and ", options.staging_rows, " staging rows"));
  }
}

DeviceKv::DeviceKv(const RunnerOptions& options, const PassPlan& passes, Ops& ops)
    : ops_(ops),
      block_bytes_(options.block_bytes),
      tables_(options.max_num_seqs, passes.num_units()) {}

void DeviceKv::allocate(const RunnerOptions& options, const PassPlan& passes, int32_t hidden_size) {
  LCKV_CHECK(static_cast<int32_t>(options.slots_per_block.size()) == passes.num_units());
  blocks_ = ops_.allocate(static_cast<size_t>(options.num_blocks) * block_bytes_);
  host_blocks_ = ops_.allocate_host(static_cast<size_t>(options.num_host_blocks) * block_bytes_);
  for (int32_t u = 0; u < passes.num_units(); ++u) {
    const LayerSpec& spec = passes.layers.layers[passes.units[u].layer];
    const int32_t slots = options.slots_per_block[u];
    LCKV_CHECK(slots > 0 && std::has_single_bit(static_cast<uint32_t>(slots)));
    units_.push_back({.layout = {.base = blocks_->data(),
                                 .block_bytes = block_bytes_,
                                 .slots_per_block = slots,
                                 .kv_heads = spec.kv_heads,
                                 .head_dim = spec.head_dim,
                                 .dtype = ops_.dtype()}});
    LCKV_CHECK(2 * static_cast<int64_t>(dtype_bytes(ops_.dtype())) * slots * spec.kv_heads *
                   spec.head_dim <=
               block_bytes_);
  }
  const size_t hidden_bytes =
      static_cast<size_t>(options.staging_rows) * hidden_size * sizeof(float);
  for (const CyclicGroup& group : passes.groups) {
    groups_.push_back(
        {.input = ops_.allocate(hidden_bytes), .output = ops_.allocate(hidden_bytes)});
    for (const UnitId unit : group.units) {
      units_[raw(unit)].fresh = allocate_rows(layout(unit), options.staging_rows);
    }
    for (const UnitId unit : group.units_read_upward) {
      units_[raw(unit)].read = allocate_rows(layout(unit), options.staging_rows);
    }
  }
}

KvRows DeviceKv::allocate_rows(const KvLayout& layout, int32_t num_rows) {
  const size_t bytes = dtype_bytes(layout.dtype) * num_rows * layout.kv_heads * layout.head_dim;
  staged_.push_back(ops_.allocate(2 * bytes));
  std::byte* const k = staged_.back()->data();
  return {.k = k, .v = k + bytes};
}

void DeviceKv::change(const StepPlan& plan) {
  const auto device = [this](BlockId block) { return blocks_->data() + raw(block) * block_bytes_; };
  const auto host = [this](HostBlockId block) {
    return host_blocks_->data() + raw(block) * block_bytes_;
  };
  for (const BlockCopy& copy : plan.to_host) {
    ops_.copy_block(device(copy.device), host(copy.host), block_bytes_);
  }
  for (const BlockCopy& copy : plan.to_device) {
    ops_.copy_block(host(copy.host), device(copy.device), block_bytes_);
  }
  for (const SeatId seat : plan.closed) tables_.close(seat);
  for (const TableTrim& trim : plan.trims) tables_.trim(trim.seat, trim.unit, trim.num_blocks);
  for (const TableAppend& append : plan.appends) {
    tables_.append(append.seat, append.unit, append.block);
  }
}

void DeviceKv::locate(const SlotRun& run, UnitId unit, SlotList& list) const {
  const int32_t slots_per_block = layout(unit).slots_per_block;
  const std::span<const int32_t> blocks = tables_.blocks(run.seat, unit);
  const int32_t first = run.first_position - first_slot_position(run.seat, unit);
  LCKV_CHECK(first >= 0 &&
             first + run.num_rows <= static_cast<int64_t>(blocks.size()) * slots_per_block);
  for (int32_t slot = first; slot < first + run.num_rows; ++slot) {
    list.blocks.push_back(blocks[slot / slots_per_block]);
    list.slots.push_back(slot % slots_per_block);
  }
}

}  // namespace lckv
