#include "worker/kv/mirrored_tables.h"

#include "kernels/check.h"

namespace lckv {

MirroredTables::MirroredTables(int32_t num_seats, int32_t num_units)
    : num_units_(num_units), tables_(static_cast<size_t>(num_seats) * num_units) {
  LCKV_CHECK(num_seats > 0 && num_units >= 0);
}

const MirroredTables::Table& MirroredTables::table(SeatId seat, UnitId unit) const {
  LCKV_CHECK(raw(unit) >= 0 && raw(unit) < num_units_ && raw(seat) >= 0);
  const size_t index = static_cast<size_t>(raw(seat)) * num_units_ + raw(unit);
  LCKV_CHECK(index < tables_.size());
  return tables_[index];
}

MirroredTables::Table& MirroredTables::table(SeatId seat, UnitId unit) {
  return const_cast<Table&>(static_cast<const MirroredTables*>(this)->table(seat, unit));
}

void MirroredTables::close(SeatId seat) {
  for (int32_t unit = 0; unit < num_units_; ++unit) {
    Table& closed = table(seat, UnitId{unit});
    closed.blocks.clear();
    closed.num_trimmed = 0;
  }
}

void MirroredTables::append(SeatId seat, UnitId unit, BlockId block) {
  LCKV_CHECK(raw(block) >= 0);
  table(seat, unit).blocks.push_back(raw(block));
}

void MirroredTables::trim(SeatId seat, UnitId unit, int32_t num_blocks) {
  Table& trimmed = table(seat, unit);
  const bool skips = trimmed.blocks.empty() && trimmed.num_trimmed == 0;
  LCKV_CHECK(num_blocks > 0);
  LCKV_CHECK(skips || num_blocks <= static_cast<int32_t>(trimmed.blocks.size()));
  if (!skips) trimmed.blocks.erase(trimmed.blocks.begin(), trimmed.blocks.begin() + num_blocks);
  trimmed.num_trimmed += num_blocks;
}

std::span<const int32_t> MirroredTables::blocks(SeatId seat, UnitId unit) const {
  return table(seat, unit).blocks;
}

int32_t MirroredTables::num_trimmed(SeatId seat, UnitId unit) const {
  return table(seat, unit).num_trimmed;
}

}  // namespace lckv
