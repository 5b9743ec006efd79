// MirroredTables: the block tables of all seats as a rank knows them, built from the changes in
// step plans.
//
// A table is the list of blocks that hold one seat's positions in one unit, from position 0 on;
// blocks that no reader's window reaches any more were trimmed from its front. Owner and only
// thread: the runner's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/kv/ids.h"

namespace lckv {

class MirroredTables {
 public:
  MirroredTables(int32_t num_seats, int32_t num_units);

  // Empties the seat's tables: its next sequence starts at position 0 again.
  void close(SeatId seat);
  void append(SeatId seat, UnitId unit, BlockId block);
  // Drops the first `num_blocks` of the blocks still there. On an empty table, as a plan that opens
  // the seat may ask, it skips the blocks that the sequence had trimmed before it was copied to the
  // host.
  void trim(SeatId seat, UnitId unit, int32_t num_blocks);

  // Raw ids of the blocks after the trimmed ones; valid until the seat's next change. The first of
  // them holds position num_trimmed() * slots per block.
  std::span<const int32_t> blocks(SeatId seat, UnitId unit) const;
  // Blocks trimmed since the seat was closed last.
  int32_t num_trimmed(SeatId seat, UnitId unit) const;

 private:
  struct Table {
    std::vector<int32_t> blocks;
    int32_t num_trimmed = 0;
  };
  const Table& table(SeatId seat, UnitId unit) const;
  Table& table(SeatId seat, UnitId unit);

  const int32_t num_units_;
  std::vector<Table> tables_;  // seat-major
};

}  // namespace lckv
