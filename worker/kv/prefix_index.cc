#include "worker/kv/prefix_index.h"

#include <algorithm>
#include <numeric>

#include "kernels/check.h"

namespace lckv {
namespace {

constexpr int32_t kNoBlock = -1;

}  // namespace

struct PrefixIndex::Entry {
  Entry* parent = nullptr;       // null: a root
  const Space* space = nullptr;  // a root's
  std::vector<int32_t> tokens;   // the chunk's own
  std::vector<int32_t> blocks;   // raw ids, unit after unit
  int32_t num_blocks = 0;        // of them, those that are there
  int32_t num_uses = 0;          // entries behind it, and places at it
};

PrefixIndex::Place::~Place() {
  if (index_ != nullptr) index_->move(*this, nullptr);
}

PrefixIndex::PrefixIndex(std::vector<PrefixUnit> units, BlockPool* pool)
    : units_(std::move(units)), pool_(pool), kept_(pool->num_blocks()) {
  for (const PrefixUnit& unit : units_) {
    LCKV_CHECK(unit.slots_per_block > 0 && unit.window >= 0);
    chunk_ = std::lcm(chunk_, unit.slots_per_block);
  }
  for (size_t u = 0; u < units_.size(); ++u) blocks_per_entry_ += blocks_per_chunk(u);
}

PrefixIndex::~PrefixIndex() = default;

PrefixIndex::Place PrefixIndex::enter(const std::string& tenant, const std::string& salt) {
  const auto [root, is_new] = roots_.try_emplace(Space{tenant, salt});
  if (is_new) {
    root->second = std::make_unique<Entry>();
    root->second->space = &root->first;
  }
  Place place;
  place.index_ = this;
  move(place, root->second.get());
  return place;
}

PrefixIndex::Entry* PrefixIndex::find(const Entry* parent, absl::Span<const int32_t> tokens) const {
  const auto found = entries_.find(Key{parent, tokens});
  return found == entries_.end() ? nullptr : found->second.get();
}

void PrefixIndex::move(Place& place, Entry* entry) {
  LCKV_CHECK(place.index_ == this);
  if (entry != nullptr) ++entry->num_uses;
  Entry* const left = std::exchange(place.entry_, entry);
  if (left == nullptr) return;
  --left->num_uses;
  remove_unused(left);
}

void PrefixIndex::remove_unused(Entry* entry) {
  while (entry != nullptr && entry->num_uses == 0 && entry->num_blocks == 0) {
    Entry* const parent = entry->parent;
    if (parent == nullptr) {
      roots_.erase(roots_.find(*entry->space));
    } else {
      // The key lies within the entry: it is found first and removed with it.
      entries_.erase(entries_.find(Key{parent, entry->tokens}));
      --parent->num_uses;
    }
    entry = parent;
  }
}

// The first of the unit's blocks that a row at `end` or behind it sees.
int32_t PrefixIndex::first_seen_block(size_t unit, int32_t end) const {
  const PrefixUnit& rule = units_[unit];
  if (rule.window == 0) return 0;
  return std::max(0, end - rule.window + 1) / rule.slots_per_block;
}

int32_t PrefixIndex::take(absl::Span<const int32_t> tokens, const PrefixBounds& bounds,
                          Place& place, SequenceTable& table) {
  LCKV_CHECK(place.index_ == this && place.num_tokens_ == 0 && table.num_blocks() == 0);
  LCKV_CHECK(bounds.end <= static_cast<int32_t>(tokens.size()) && bounds.alignment > 0);
  std::vector<Entry*> path;
  // Per unit: its blocks from here up to the path's end are all there.
  std::vector<int32_t> whole_from(units_.size(), 0);
  size_t num_taken = 0;
  const Entry* at = place.entry_;
  for (int32_t end = chunk_; end <= bounds.end; end += chunk_) {
    Entry* const entry = find(at, tokens.subspan(end - chunk_, chunk_));
    if (entry == nullptr) break;
    bool usable = end >= bounds.aligned_below || end % bounds.alignment == 0;
    int32_t index = 0;
    for (size_t u = 0; u < units_.size(); ++u) {
      const int32_t per_chunk = blocks_per_chunk(u);
      const int32_t first = static_cast<int32_t>(path.size()) * per_chunk;
      for (int32_t i = 0; i < per_chunk; ++i, ++index) {
        if (entry->blocks[index] == kNoBlock) whole_from[u] = first + i + 1;
      }
      usable = usable && whole_from[u] <= first_seen_block(u, end);
    }
    path.push_back(entry);
    if (usable) num_taken = path.size();
    at = entry;
  }
  if (num_taken == 0) return 0;
  const int32_t end = static_cast<int32_t>(num_taken) * chunk_;
  int32_t index = 0;
  for (size_t u = 0; u < units_.size(); index += blocks_per_chunk(u), ++u) {
    const UnitId unit{static_cast<int32_t>(u)};
    const int32_t per_chunk = blocks_per_chunk(u);
    const int32_t first = first_seen_block(u, end);
    if (first > 0) table.skip(unit, first);
    for (int32_t i = first; i < static_cast<int32_t>(num_taken) * per_chunk; ++i) {
      const int32_t block = path[i / per_chunk]->blocks[index + i % per_chunk];
      table.append(unit, pool_->share(BlockId{block}));
    }
  }
  move(place, path[num_taken - 1]);
  place.num_tokens_ = end;
  return end;
}

void PrefixIndex::add(absl::Span<const int32_t> tokens, const SequenceTable& table, Place& place) {
  LCKV_CHECK(place.index_ == this && static_cast<int32_t>(tokens.size()) == chunk_);
  Entry* entry = find(place.entry_, tokens);
  if (entry == nullptr) {
    auto added = std::make_unique<Entry>();
    entry = added.get();
    entry->parent = place.entry_;
    entry->tokens.assign(tokens.begin(), tokens.end());
    entry->blocks.assign(blocks_per_entry_, kNoBlock);
    ++place.entry_->num_uses;
    entries_.emplace(Key{entry->parent, entry->tokens}, std::move(added));
  }
  int32_t index = 0;
  for (size_t u = 0; u < units_.size(); ++u) {
    const UnitId unit{static_cast<int32_t>(u)};
    const std::vector<BlockRef>& held = table.blocks(unit);
    const int32_t per_chunk = blocks_per_chunk(u);
    const int32_t first = place.num_tokens_ / chunk_ * per_chunk - table.num_trimmed(unit);
    LCKV_CHECK(first + per_chunk <= static_cast<int32_t>(held.size()));
    for (int32_t i = first; i < first + per_chunk; ++i, ++index) {
      if (i < 0 || entry->blocks[index] != kNoBlock) continue;
      const BlockId block = held[i].id();
      pool_->keep(block);
      kept_[raw(block)] = {.entry = entry, .index = index};
      entry->blocks[index] = raw(block);
      ++entry->num_blocks;
    }
  }
  move(place, entry);
  place.num_tokens_ += chunk_;
}

void PrefixIndex::forget_oldest() {
  const std::optional<BlockId> block = pool_->oldest_idle();
  LCKV_CHECK(block.has_value());
  const Kept kept = std::exchange(kept_[raw(*block)], {});
  LCKV_CHECK(kept.entry != nullptr && kept.entry->blocks[kept.index] == raw(*block));
  kept.entry->blocks[kept.index] = kNoBlock;
  --kept.entry->num_blocks;
  pool_->forget(*block);
  remove_unused(kept.entry);
}

}  // namespace lckv
