#include "worker/kv/sequence_table.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "kernels/check.h"

namespace lckv {

SequenceTable::SequenceTable(const std::vector<int32_t>* slots_per_block)
    : slots_per_block_(slots_per_block), units_(slots_per_block->size()) {
  for (const int32_t slots : *slots_per_block) LCKV_CHECK(slots > 0);
}

int32_t SequenceTable::num_missing(UnitId unit, int32_t end) const {
  const int32_t slots = (*slots_per_block_)[raw(unit)];
  const Unit& table = units_[raw(unit)];
  const int32_t held = table.num_trimmed + static_cast<int32_t>(table.blocks.size());
  return std::max(0, (end + slots - 1) / slots - held);
}

void SequenceTable::append(UnitId unit, BlockRef block) {
  units_[raw(unit)].blocks.push_back(std::move(block));
}

std::vector<BlockRef> SequenceTable::trim(UnitId unit, int32_t first_position) {
  Unit& table = units_[raw(unit)];
  const int32_t slots = (*slots_per_block_)[raw(unit)];
  const int32_t num_blocks = std::clamp(first_position / slots - table.num_trimmed, 0,
                                        static_cast<int32_t>(table.blocks.size()));
  const auto end = table.blocks.begin() + num_blocks;
  std::vector<BlockRef> dropped(std::make_move_iterator(table.blocks.begin()),
                                std::make_move_iterator(end));
  table.blocks.erase(table.blocks.begin(), end);
  table.num_trimmed += num_blocks;
  return dropped;
}

std::vector<BlockRef> SequenceTable::truncate(UnitId unit, int32_t end) {
  Unit& table = units_[raw(unit)];
  const int32_t slots = (*slots_per_block_)[raw(unit)];
  const int32_t keep = (end + slots - 1) / slots - table.num_trimmed;
  LCKV_CHECK(keep >= 0);
  std::vector<BlockRef> dropped;
  while (static_cast<int32_t>(table.blocks.size()) > keep) {
    dropped.push_back(std::move(table.blocks.back()));
    table.blocks.pop_back();
  }
  return dropped;
}

std::vector<BlockRef> SequenceTable::clear() {
  struct Held {
    int64_t first_position = 0;
    BlockRef block;
  };
  std::vector<Held> held;
  for (size_t u = 0; u < units_.size(); ++u) {
    int64_t position = int64_t{units_[u].num_trimmed} * (*slots_per_block_)[u];
    for (BlockRef& block : units_[u].blocks) {
      held.push_back({position, std::move(block)});
      position += (*slots_per_block_)[u];
    }
    units_[u] = Unit{};
  }
  std::stable_sort(held.begin(), held.end(), [](const Held& a, const Held& b) {
    return a.first_position > b.first_position;
  });
  std::vector<BlockRef> dropped;
  dropped.reserve(held.size());
  for (Held& entry : held) dropped.push_back(std::move(entry.block));
  return dropped;
}

void SequenceTable::skip(UnitId unit, int32_t num_blocks) {
  Unit& table = units_[raw(unit)];
  LCKV_CHECK(table.blocks.empty() && table.num_trimmed == 0 && num_blocks >= 0);
  table.num_trimmed = num_blocks;
}

int32_t SequenceTable::num_blocks() const {
  int32_t count = 0;
  for (const Unit& table : units_) count += static_cast<int32_t>(table.blocks.size());
  return count;
}

}  // namespace lckv
