// SequenceTable: the blocks of one sequence, per unit, from position 0 on; the first ones may be
// trimmed.
//
// Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/kv/block_pool.h"
#include "worker/kv/ids.h"

namespace lckv {

class SequenceTable {
 public:
  // `slots_per_block` per unit; must outlive the table.
  explicit SequenceTable(const std::vector<int32_t>* slots_per_block);

  // Blocks that the unit lacks to hold the positions below `end`.
  int32_t num_missing(UnitId unit, int32_t end) const;
  void append(UnitId unit, BlockRef block);
  // Drops the front blocks whose positions are all below `first_position`.
  std::vector<BlockRef> trim(UnitId unit, int32_t first_position);
  // Drops the blocks whose positions are all at `end` or above.
  std::vector<BlockRef> truncate(UnitId unit, int32_t end);
  // Drops everything; positions start at 0 again. The blocks of the last positions come first: of a
  // beginning that others may take, the end is to go before what it builds on.
  std::vector<BlockRef> clear();
  // For a table whose first blocks were trimmed before it was copied away. The unit must be empty.
  void skip(UnitId unit, int32_t num_blocks);

  const std::vector<BlockRef>& blocks(UnitId unit) const { return units_[raw(unit)].blocks; }
  int32_t num_trimmed(UnitId unit) const { return units_[raw(unit)].num_trimmed; }
  int32_t num_units() const { return static_cast<int32_t>(units_.size()); }
  int32_t num_blocks() const;  // of all units

 private:
  struct Unit {
    std::vector<BlockRef> blocks;
    int32_t num_trimmed = 0;
  };
  const std::vector<int32_t>* slots_per_block_;
  std::vector<Unit> units_;
};

}  // namespace lckv
