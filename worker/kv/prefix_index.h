// PrefixIndex: which blocks hold the keys and values of which beginning of a text.
//
// Text is cut into chunks of as many tokens as fill whole blocks of every unit. An entry is one
// chunk behind one certain beginning, and knows a block for each of its places in each unit, as far
// as they are still there: a unit that is only read through windows can do without its first ones.
// Beginnings are told apart by comparing their tokens, chunk by chunk, in a tree of which each pair
// of tenant and salt has its own; hashes only find the place. So no collision, made or met, can
// give one text, tenant or salt the blocks of another. What else keys and values depend on, the
// model, its plan and formats, is the same for all that one index is asked for.
//
// Blocks enter it full and are never written again. It keeps them in their pool and holds none:
// idle ones it gives up one by one, the longest unused first. An entry without blocks stays as long
// as a longer beginning or a sequence needs it: at most a sequence's length in chunks for each
// block that is kept and for each sequence. Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "worker/kv/block_pool.h"
#include "worker/kv/sequence_table.h"

namespace lckv {

struct PrefixUnit {
  int32_t slots_per_block = 0;
  int32_t window = 0;  // the widest of its readers'; 0: some reader sees everything
};

// Where a hit may end.
struct PrefixBounds {
  int32_t end = 0;  // at the latest
  // Below `aligned_below` only on multiples of `alignment`.
  int32_t alignment = 1;
  int32_t aligned_below = 0;
};

class PrefixIndex {
  struct Entry;

 public:
  // A beginning of a text in the index, the chunks below num_tokens(). Movable; the index outlives
  // it.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept { *this = std::move(other); }
    Place& operator=(Place&& other) noexcept {
      std::swap(index_, other.index_);
      std::swap(entry_, other.entry_);
      std::swap(num_tokens_, other.num_tokens_);
      return *this;
    }
    ~Place();
    int32_t num_tokens() const { return num_tokens_; }

   private:
    friend class PrefixIndex;
    PrefixIndex* index_ = nullptr;
    Entry* entry_ = nullptr;
    int32_t num_tokens_ = 0;
  };

  // `pool` outlives the index.
  PrefixIndex(std::vector<PrefixUnit> units, BlockPool* pool);
  ~PrefixIndex();
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  // Tokens per chunk.
  int32_t chunk() const { return chunk_; }
  // The empty beginning of what tenant and salt may share.
  Place enter(const std::string& tenant, const std::string& salt);

  // Puts the blocks of the longest known beginning of `tokens` within bounds into `table`, which
  // must be empty, and moves `place`, which must be at 0, behind it. Blocks that no row behind it
  // sees are skipped. Returns its length.
  int32_t take(absl::Span<const int32_t> tokens, const PrefixBounds& bounds, Place& place,
               SequenceTable& table);
  // Remembers the chunk of `tokens` behind `place` in the blocks that `table` has for it, where
  // there are none yet, and moves `place` behind it. Whoever asks from now on may get them: they
  // must be written before any later plan reads them.
  void add(absl::Span<const int32_t> tokens, const SequenceTable& table, Place& place);

  // Forgets the block that has been idle for longest, so that it is blank. There must be one.
  void forget_oldest();

 private:
  struct Key {
    const Entry* parent = nullptr;
    absl::Span<const int32_t> tokens;

    friend bool operator==(const Key&, const Key&) = default;
    template <typename Hash>
    friend Hash AbslHashValue(Hash hash, const Key& key) {
      return Hash::combine(std::move(hash), key.parent, key.tokens);
    }
  };
  struct Kept {  // a block's place
    Entry* entry = nullptr;
    int32_t index = 0;
  };
  using Space = std::pair<std::string, std::string>;  // tenant and salt

  Entry* find(const Entry* parent, absl::Span<const int32_t> tokens) const;
  void move(Place& place, Entry* entry);
  // Removes it, and its parents, as far as nobody needs them.
  void remove_unused(Entry* entry);
  int32_t blocks_per_chunk(size_t unit) const { return chunk_ / units_[unit].slots_per_block; }
  int32_t first_seen_block(size_t unit, int32_t end) const;

  const std::vector<PrefixUnit> units_;
  BlockPool* const pool_;
  int32_t chunk_ = 1;
  int32_t blocks_per_entry_ = 0;
  std::map<Space, std::unique_ptr<Entry>> roots_;
  absl::flat_hash_map<Key, std::unique_ptr<Entry>> entries_;
  std::vector<Kept> kept_;  // by block
};

}  // namespace lckv
