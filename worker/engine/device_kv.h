// DeviceKv: the KV memory of one rank: the bytes of blocks, host tier and staging, and which of
// them hold which position of which seat.
//
// Owner: ModelRunner. Thread: the engine's only. All memory is allocated by create().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/engine/model_runner.h"
#include "worker/kv/mirrored_tables.h"
#include "worker/kv/pass_plan.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

// Where consecutive positions of one seat have their slots in one unit.
struct SlotRun {
  SeatId seat{};
  int32_t first_position = 0;
  int32_t num_rows = 0;
};

// Slots, one per row: slots[i] of block blocks[i].
struct SlotList {
  std::vector<int32_t> blocks;
  std::vector<int32_t> slots;
};

class DeviceKv {
 public:
  // Errors: ResourceExhausted where the memory cannot be had.
  static absl::StatusOr<std::unique_ptr<DeviceKv>> create(const RunnerOptions& options,
                                                          const PassPlan& passes,
                                                          int32_t hidden_size, Ops& ops);

  // Block copies and changes of tables, in the plan's order. Seats that open have empty tables.
  void change(const StepPlan& plan);

  // Blocks of the seat's slots in the unit that hold positions from first_slot_position() on.
  std::span<const int32_t> blocks(SeatId seat, UnitId unit) const {
    return tables_.blocks(seat, unit);
  }
  int32_t first_slot_position(SeatId seat, UnitId unit) const {
    return tables_.num_trimmed(seat, unit) * layout(unit).slots_per_block;
  }
  // Appends the run's slots to `list`.
  void locate(const SlotRun& run, UnitId unit, SlotList& list) const;

  const KvLayout& layout(UnitId unit) const { return units_[raw(unit)].layout; }
  // Arrays over the staging rows of the group that owns the unit; null where it is in no group, and
  // the second also where no layer reads the unit upward.
  const KvRows& fresh(UnitId unit) const { return units_[raw(unit)].fresh; }
  const KvRows& read(UnitId unit) const { return units_[raw(unit)].read; }
  // [staging_rows, hidden_size] each: what walks of the group start from, and what they give.
  float* input(int32_t group) { return groups_[group].input->floats(); }
  float* output(int32_t group) { return groups_[group].output->floats(); }

 private:
  struct Unit {
    KvLayout layout;
    KvRows fresh;
    KvRows read;
  };
  struct Group {
    std::unique_ptr<DeviceBuffer> input;
    std::unique_ptr<DeviceBuffer> output;
  };
  DeviceKv(const RunnerOptions& options, const PassPlan& passes, Ops& ops);
  void allocate(const RunnerOptions& options, const PassPlan& passes, int32_t hidden_size);
  KvRows allocate_rows(const KvLayout& layout, int32_t num_rows);

  Ops& ops_;
  const int64_t block_bytes_;
  MirroredTables tables_;
  std::unique_ptr<DeviceBuffer> blocks_;
  std::unique_ptr<HostBuffer> host_blocks_;
  std::vector<std::unique_ptr<DeviceBuffer>> staged_;
  std::vector<Unit> units_;
  std::vector<Group> groups_;
};

}  // namespace lckv
