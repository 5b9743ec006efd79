// Beginnings are found by what they are, in blocks that are whole, and forgotten oldest first.
#include "worker/kv/prefix_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

#include "worker/kv/deferred_release.h"

namespace lckv {
namespace {

using testing::ElementsAre;

TEST(KeptBlocks, AreFreeAndStillThere) {
  BlockPool pool(2);
  const BlockId id = [&pool] {
    const BlockRef block = *pool.take();
    pool.keep(block.id());
    EXPECT_EQ(pool.num_idle(), 0);
    return block.id();
  }();
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.num_blank(), 1);
  EXPECT_EQ(pool.oldest_idle(), id);
  {
    const BlockRef again = pool.share(id);
    const BlockRef twice = pool.share(id);
    EXPECT_EQ(pool.num_holds(id), 2);
    EXPECT_EQ(pool.num_free(), 1);
    EXPECT_FALSE(pool.oldest_idle().has_value());
  }
  pool.forget(id);
  EXPECT_EQ(pool.num_blank(), 2);
  EXPECT_DEATH(pool.share(id), "invariant");
}

TEST(KeptBlocks, IdleOnesAreInTheOrderOfTheirLastUse) {
  BlockPool pool(3);
  std::vector<BlockRef> held;
  for (int i = 0; i < 3; ++i) {
    held.push_back(*pool.take());
    pool.keep(held.back().id());
  }
  held.clear();  // 0, 1, 2
  pool.share(BlockId{0});
  pool.share(BlockId{2});
  for (const int32_t id : {1, 0, 2}) {
    ASSERT_EQ(pool.oldest_idle(), BlockId{id});
    pool.forget(BlockId{id});
  }
  EXPECT_EQ(pool.num_blank(), 3);
}

// Two units of 4 and 2 slots: chunks of 4 tokens in one and two blocks.
class PrefixIndexTest : public testing::Test {
 protected:
  explicit PrefixIndexTest(int32_t window = 0)
      : index_({{.slots_per_block = 4}, {.slots_per_block = 2, .window = window}}, &pool_) {}

  static std::vector<int32_t> text(int32_t length, int32_t first = 100) {
    std::vector<int32_t> tokens(length);
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
  }
  BlockRef block() {
    if (pool_.num_blank() == 0) index_.forget_oldest();
    return *pool_.take();
  }
  // Runs `tokens` and offers all of its chunks; the blocks are held while the table lives.
  SequenceTable run(const std::vector<int32_t>& tokens, const char* tenant = "",
                    const char* salt = "") {
    SequenceTable table(&slots_);
    const auto length = static_cast<int32_t>(tokens.size());
    for (int32_t u = 0; u < 2; ++u) {
      for (int32_t n = table.num_missing(UnitId{u}, length); n > 0; --n) {
        table.append(UnitId{u}, block());
      }
    }
    auto place = index_.enter(tenant, salt);
    for (int32_t at = 0; at + 4 <= length; at += 4) {
      index_.add(absl::MakeSpan(tokens).subspan(at, 4), table, place);
    }
    return table;
  }
  struct Hit {
    int32_t length = 0;
    SequenceTable table;
  };
  Hit take(const std::vector<int32_t>& tokens, PrefixBounds bounds, const char* tenant = "",
           const char* salt = "") {
    Hit hit{.table = SequenceTable(&slots_)};
    auto place = index_.enter(tenant, salt);
    hit.length = index_.take(tokens, bounds, place, hit.table);
    EXPECT_EQ(place.num_tokens(), hit.length);
    return hit;
  }
  Hit take(const std::vector<int32_t>& tokens, const char* tenant = "", const char* salt = "") {
    return take(tokens, {.end = static_cast<int32_t>(tokens.size())}, tenant, salt);
  }
  // As a sequence's end does it: the last positions first.
  static void release(SequenceTable table) {
    DeferredRelease<BlockRef>().release(0, table.clear());
  }
  // As take(), without keeping what was found.
  int32_t find(const std::vector<int32_t>& tokens) {
    Hit hit = take(tokens);
    release(std::move(hit.table));
    return hit.length;
  }
  static std::vector<int32_t> ids(const SequenceTable& table, int32_t unit) {
    std::vector<int32_t> ids;
    for (const BlockRef& block : table.blocks(UnitId{unit})) ids.push_back(raw(block.id()));
    return ids;
  }

  const std::vector<int32_t> slots_ = {4, 2};
  BlockPool pool_{12};
  PrefixIndex index_;
};

TEST_F(PrefixIndexTest, FindsTheLongestWholeBeginning) {
  const SequenceTable written = run(text(11));
  EXPECT_EQ(index_.chunk(), 4);
  const Hit hit = take(text(20));
  EXPECT_EQ(hit.length, 8);
  const std::vector<int32_t> first = ids(written, 0);
  EXPECT_THAT(ids(hit.table, 0), ElementsAre(first[0], first[1]));
  EXPECT_EQ(hit.table.blocks(UnitId{1}).size(), 4U);
  EXPECT_EQ(take(text(20), {.end = 7}).length, 4);
  std::vector<int32_t> other = text(20);
  other[5] = 0;
  EXPECT_EQ(take(other).length, 4);
  other[0] = 0;
  EXPECT_EQ(take(other).length, 0);
  // The same chunk behind another one is another beginning.
  EXPECT_EQ(take(text(8, 104)).length, 0);
}

TEST_F(PrefixIndexTest, EndsOnMultiplesWhereAsked) {
  const SequenceTable written = run(text(12));
  EXPECT_EQ(take(text(12), {.end = 12, .alignment = 8, .aligned_below = 100}).length, 8);
  EXPECT_EQ(take(text(12), {.end = 12, .alignment = 8, .aligned_below = 12}).length, 12);
  EXPECT_EQ(take(text(12), {.end = 12, .alignment = 16, .aligned_below = 100}).length, 0);
}

TEST_F(PrefixIndexTest, TenantsAndSaltsAreAlone) {
  const SequenceTable written = run(text(4), "a", "x");
  EXPECT_EQ(take(text(4), "a", "x").length, 4);
  EXPECT_EQ(take(text(4), "b", "x").length, 0);
  EXPECT_EQ(take(text(4), "a", "").length, 0);
  EXPECT_EQ(take(text(4), "ax", "").length, 0);
  EXPECT_EQ(take(text(4), "", "ax").length, 0);
}

TEST_F(PrefixIndexTest, WhoComesLaterKeepsItsOwnBlocks) {
  const SequenceTable first = run(text(4));
  const SequenceTable second = run(text(4));
  EXPECT_NE(ids(first, 0), ids(second, 0));
  EXPECT_EQ(ids(take(text(4)).table, 0), ids(first, 0));
  // Its next chunk is behind the same beginning.
  const SequenceTable third = run(text(8));
  EXPECT_EQ(take(text(8)).length, 8);
}

TEST_F(PrefixIndexTest, TheLongestUnusedIsForgottenFirstAndFromItsEnd) {
  release(run(text(8)));
  release(run(text(4, 500)));
  EXPECT_EQ(pool_.num_idle(), 9);
  EXPECT_EQ(pool_.num_free(), 12);
  EXPECT_EQ(find(text(8)), 8);  // used again: now the other one is older
  {
    std::vector<BlockRef> taken;
    while (pool_.num_blank() > 0) taken.push_back(block());
    taken.push_back(block());
    EXPECT_EQ(find(text(4, 500)), 0);
    EXPECT_EQ(find(text(8)), 8);
    taken.push_back(block());
    taken.push_back(block());
    EXPECT_EQ(find(text(8)), 8);
    taken.push_back(block());
    EXPECT_EQ(find(text(8)), 4);
  }
  // What was lost is filled in again by whoever runs it.
  release(run(text(8)));
  EXPECT_EQ(find(text(8)), 8);
  while (pool_.num_idle() > 0) index_.forget_oldest();
  EXPECT_EQ(find(text(8)), 0);
  EXPECT_EQ(pool_.num_blank(), 12);
}

// The second unit is read through a window of 4 positions.
class WindowedPrefixIndexTest : public PrefixIndexTest {
 protected:
  WindowedPrefixIndexTest() : PrefixIndexTest(4) {}
};

TEST_F(WindowedPrefixIndexTest, BlocksBehindTheWindowMayBeMissing) {
  SequenceTable written = run(text(12));
  const std::vector<int32_t> second = ids(written, 1);
  // A row at 12 sees positions from 9 on: the blocks from 8 on.
  const Hit hit = take(text(12));
  EXPECT_EQ(hit.length, 12);
  EXPECT_EQ(hit.table.num_trimmed(UnitId{1}), 4);
  EXPECT_THAT(ids(hit.table, 1), ElementsAre(second[4], second[5]));
  EXPECT_EQ(hit.table.blocks(UnitId{0}).size(), 3U);

  // As long as they run, windows leave blocks behind; these go first.
  written.trim(UnitId{1}, 9);
  EXPECT_EQ(pool_.num_idle(), 4);
  while (pool_.num_idle() > 0) index_.forget_oldest();
  EXPECT_EQ(take(text(12)).length, 12);
  EXPECT_EQ(take(text(8)).length, 0);
}

}  // namespace
}  // namespace lckv
