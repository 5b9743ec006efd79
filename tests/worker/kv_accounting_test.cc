#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "worker/kv/block_pool.h"
#include "worker/kv/deferred_release.h"
#include "worker/kv/mirrored_tables.h"
#include "worker/kv/sequence_table.h"
#include "worker/kv/staging.h"

namespace lckv {
namespace {

using testing::ElementsAre;

TEST(BlockPool, LastHoldDroppedReturnsTheBlock) {
  BlockPool pool(1);
  std::optional<BlockRef> first = pool.take();
  ASSERT_TRUE(first.has_value());
  EXPECT_FALSE(pool.take().has_value());
  {
    const BlockRef second = *first;
    first.reset();
    EXPECT_EQ(pool.num_free(), 0);
    EXPECT_EQ(second.id(), BlockId{0});
  }
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPool, AssigningARefReturnsWhatItHeld) {
  BlockPool pool(2);
  BlockRef a = *pool.take();
  const BlockRef b = *pool.take();
  a = b;
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(a.id(), b.id());
}

TEST(DeferredRelease, HoldsUntilTheLastNamingStepIsCommitted) {
  BlockPool pool(3);
  DeferredRelease<BlockRef> deferred;
  deferred.release(2, {*pool.take()});
  deferred.release(0, {*pool.take()});  // no plan names it
  EXPECT_EQ(pool.num_free(), 2);
  deferred.commit(1);
  EXPECT_EQ(pool.num_free(), 2);
  deferred.commit(2);
  EXPECT_EQ(pool.num_free(), 3);
  EXPECT_TRUE(deferred.empty());
}

TEST(DeferredReleaseDeathTest, CommitsComeInOrder) {
  DeferredRelease<BlockRef> deferred;
  EXPECT_DEATH(deferred.commit(2), "invariant");
}

TEST(Staging, ARowIsGivenBackOnce) {
  Staging staging(2, 3);
  const StagingRow row = staging.take(1);
  EXPECT_EQ(staging.num_free(0), 3);
  EXPECT_EQ(staging.num_free(1), 2);
  staging.give_back(1, row);
  EXPECT_DEATH(staging.give_back(1, row), "invariant");
}

TEST(SequenceTable, CountsTrimsAndTruncatesByPositions) {
  const std::vector<int32_t> slots = {4, 2};
  BlockPool pool(8);
  SequenceTable table(&slots);
  EXPECT_EQ(table.num_missing(UnitId{0}, 9), 3);
  EXPECT_EQ(table.num_missing(UnitId{1}, 0), 0);
  for (int i = 0; i < 4; ++i) table.append(UnitId{0}, *pool.take());
  EXPECT_EQ(table.num_missing(UnitId{0}, 16), 0);
  EXPECT_EQ(table.trim(UnitId{0}, 7).size(), 1U);  // position 7 keeps the second block
  EXPECT_EQ(table.num_trimmed(UnitId{0}), 1);
  EXPECT_EQ(table.num_missing(UnitId{0}, 17), 1);
  EXPECT_EQ(table.truncate(UnitId{0}, 9).size(), 1U);
  EXPECT_EQ(table.num_blocks(), 2);
  EXPECT_EQ(table.clear().size(), 2U);
  EXPECT_EQ(pool.num_free(), 8);
}

TEST(MirroredTables, FollowAppendsTrimsAndClosings) {
  MirroredTables tables(2, 2);
  const SeatId seat{1};
  const UnitId unit{1};
  for (const int32_t block : {5, 3, 9}) tables.append(seat, unit, BlockId{block});
  tables.trim(seat, unit, 1);
  EXPECT_THAT(tables.blocks(seat, unit), ElementsAre(3, 9));
  EXPECT_EQ(tables.num_trimmed(seat, unit), 1);
  EXPECT_TRUE(tables.blocks(SeatId{0}, unit).empty());
  tables.close(seat);
  EXPECT_TRUE(tables.blocks(seat, unit).empty());
  EXPECT_EQ(tables.num_trimmed(seat, unit), 0);
}

TEST(MirroredTables, ATableCopiedBackSkipsWhatWasTrimmedBefore) {
  MirroredTables tables(1, 1);
  tables.trim(SeatId{0}, UnitId{0}, 2);
  tables.append(SeatId{0}, UnitId{0}, BlockId{4});
  EXPECT_THAT(tables.blocks(SeatId{0}, UnitId{0}), ElementsAre(4));
  EXPECT_EQ(tables.num_trimmed(SeatId{0}, UnitId{0}), 2);
}

TEST(MirroredTablesDeathTest, NoMoreIsTrimmedThanIsThere) {
  MirroredTables tables(1, 1);
  tables.append(SeatId{0}, UnitId{0}, BlockId{4});
  EXPECT_DEATH(tables.trim(SeatId{0}, UnitId{0}, 2), "invariant");
}

}  // namespace
}  // namespace lckv
