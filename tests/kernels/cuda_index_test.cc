// The index arithmetic that the CUDA backend's kernels and their callers share, on the host.
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <set>
#include <vector>

#include "kernels/cuda/attention_index.h"
#include "kernels/cuda/kv_index.h"
#include "kernels/cuda/peer_index.h"
#include "kernels/cuda/recorded_rooms.h"
#include "kernels/cuda/ring_cursor.h"
#include "kernels/cuda/row_chunks.h"
#include "kernels/cuda/sampling_index.h"

namespace lckv {
namespace {

TEST(KvIndex, SlotsOfABlockDoNotOverlapAndFillIt) {
  for (const int32_t slots : {1, 4, 16}) {
    const KvLayout layout{.slots_per_block = slots, .kv_heads = 3, .head_dim = 16};
    std::set<int64_t> seen;
    for (int32_t slot = 0; slot < slots; ++slot) {
      for (int64_t j = 0; j < kv_row_width(layout); ++j) {
        const int64_t key = slot_element(layout, slot, j);
        EXPECT_LT(key, value_distance(layout));
        seen.insert(key);
        seen.insert(key + value_distance(layout));
      }
    }
    EXPECT_EQ(seen.size(), 2U * 3 * 16 * slots);
    EXPECT_EQ(*seen.begin(), 0);
    EXPECT_EQ(*seen.rbegin(), 2 * 3 * 16 * slots - 1);
  }
}

TEST(KvIndex, AHeadsSlotsLieTogether) {
  const KvLayout layout{.slots_per_block = 8, .kv_heads = 2, .head_dim = 4};
  EXPECT_EQ(slot_element(layout, 0, 0), 0);
  EXPECT_EQ(slot_element(layout, 1, 0), 4);
  EXPECT_EQ(slot_element(layout, 1, 3), 7);
  EXPECT_EQ(slot_element(layout, 1, 4), 36);
}

TEST(EntryAt, FindsPositionsBetweenGaps) {
  const std::vector<HistoryRun> runs = {{3, 0}, {10, 2}, {20, 7}};
  const auto entry = [&](int32_t position) { return entry_at(runs.data(), 3, 9, position); };
  EXPECT_EQ(entry(2), -1);
  EXPECT_EQ(entry(3), 0);
  EXPECT_EQ(entry(4), 1);
  EXPECT_EQ(entry(5), -1);
  EXPECT_EQ(entry(10), 2);
  EXPECT_EQ(entry(14), 6);
  EXPECT_EQ(entry(15), -1);
  EXPECT_EQ(entry(21), 8);
  EXPECT_EQ(entry(22), -1);
  EXPECT_EQ(entry_at(nullptr, 0, 0, 0), -1);
}

TEST(QueryShape, EveryHeadOfEveryRowIsComputedOnce) {
  for (const auto& [heads, kv_heads] :
       {std::pair(4, 4), {6, 3}, {8, 1}, {32, 1}, {20, 2}, {9, 1}, {71, 1}}) {
    for (const int32_t queries : {kScalarQueries, kTensorQueries}) {
      const QueryShape shape(heads, kv_heads, queries);
      ASSERT_LE(shape.rows * shape.heads, queries);
      std::multiset<std::pair<int32_t, int32_t>> computed;
      for (int32_t chunk = 0; chunk < shape.chunks; ++chunk) {
        for (int32_t query = 0; query < shape.rows * shape.heads; ++query) {
          if (shape.head_of(query, chunk) >= shape.heads_per_kv) continue;
          computed.insert({shape.row_of(query), shape.head_of(query, chunk)});
        }
      }
      EXPECT_EQ(computed.size(), static_cast<size_t>(shape.rows) * shape.heads_per_kv);
      EXPECT_EQ(std::set(computed.begin(), computed.end()).size(), computed.size());
    }
  }
}

// Of chunks of 16 bytes, eight fill all banks.
TEST(SwizzledChunk, NeitherRowsOfAMatrixNorNeighboursOfARowShareBanks) {
  for (const uint32_t chunks : {2U, 4U, 6U, 8U, 10U, 12U, 16U, 32U}) {
    SCOPED_TRACE(testing::Message() << chunks << " chunks");
    std::set<uint32_t> all;
    for (uint32_t row = 0; row < 64; row += 8) {
      for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        std::set<uint32_t> banks;
        for (uint32_t i = 0; i < 8; ++i) banks.insert(swizzled_chunk(chunks, row + i, chunk) % 8);
        EXPECT_EQ(banks.size(), 8U) << "rows from " << row << ", chunk " << chunk;
      }
    }
    for (uint32_t first = 0; first < 64 * chunks; first += 8) {
      std::set<uint32_t> banks;
      for (uint32_t i = first; i < first + 8; ++i) {
        const uint32_t at = swizzled_chunk(chunks, i / chunks, i % chunks);
        EXPECT_EQ(at / chunks, i / chunks);
        EXPECT_TRUE(all.insert(at).second);
        banks.insert(at % 8);
      }
      EXPECT_EQ(banks.size(), 8U) << "chunks from " << first;
    }
  }
}

TEST(RingCursor, PiecesOfASegmentFollowEachOtherAndSegmentsTakeTurns) {
  RingCursor cursor(3, 1024);
  std::vector<size_t> offsets;
  std::vector<bool> enters;
  for (const size_t bytes : {10, 512, 1, 1, 1024, 1, 1024, 0}) {
    const RingPiece piece = cursor.take(bytes);
    EXPECT_EQ(piece.offset / 1024, piece.segment);
    EXPECT_LE(piece.offset % 1024 + bytes, 1024U);
    offsets.push_back(piece.offset);
    enters.push_back(piece.enters_segment);
  }
  EXPECT_EQ(offsets, (std::vector<size_t>{0, 256, 768, 1024, 2048, 0, 1024, 2048}));
  EXPECT_EQ(enters, (std::vector<bool>{true, false, false, true, true, true, true, true}));
}

// From a byte to a whole half, with blocks that have nothing to do.
TEST(Stripes, CoverWhatIsExchangedOnceFromUnitToUnit) {
  for (const int64_t bytes : {int64_t{1}, int64_t{16}, int64_t{17}, int64_t{4096}, int64_t{4097},
                              int64_t{130000}, int64_t{131073}, kHalfBytes - 1, kHalfBytes}) {
    const int blocks = exchange_blocks(bytes);
    EXPECT_LE(blocks, kMaxExchangeBlocks);
    int64_t end = 0;
    for (int block = 0; block < blocks; ++block) {
      const Stripe stripe = stripe_of(bytes, block, blocks);
      EXPECT_EQ(stripe.begin, end);
      EXPECT_TRUE(stripe.begin == stripe.end || stripe.begin % kUnitBytes == 0);
      end = stripe.end;
    }
    EXPECT_EQ(end, bytes);
  }
}

TEST(RecordedRows, FewNumbersHoldAllAndWasteLittle) {
  std::set<int32_t> numbers;
  for (int32_t rows = 1; rows <= kRecordedRowsMax; ++rows) {
    const int32_t padded = recorded_rows(rows);
    EXPECT_GE(padded, rows);
    EXPECT_LE(padded, std::max(rows + 15, 2));
    EXPECT_LT(padded, 2 * rows + 1);
    EXPECT_EQ(recorded_rows(padded), padded);
    numbers.insert(padded);
  }
  EXPECT_EQ(numbers, (std::set<int32_t>{1, 2, 4, 8, 16, 24, 32, 48, 64}));
  EXPECT_EQ(recorded_rows(kRecordedRowsMax + 1), kRecordedRowsMax + 1);
}

TEST(RoomFor, IsOutgrownSeldom) {
  EXPECT_EQ(room_for(0), 0U);
  EXPECT_EQ(room_for(1), 16U);
  EXPECT_EQ(room_for(16), 16U);
  EXPECT_EQ(room_for(17), 32U);
  EXPECT_EQ(room_for(1000), 1024U);
}

TEST(ChunkedK, IsWholeChunksOf16Bytes) {
  EXPECT_EQ(chunked_k(DType::kFloat32, 1), 4);
  EXPECT_EQ(chunked_k(DType::kFloat32, 8), 8);
  EXPECT_EQ(chunked_k(DType::kBFloat16, 9), 16);
}

TEST(OrderedKey, KeepsTheOrderOfLogits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> ascending = {-kInfinity, -3e38F, -1.5F, -1e-40F, 0.0F,
                                        1e-40F,     1.0F,   2.5F,  3e38F,   kInfinity};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_LT(ordered_key(ascending[i - 1]), ordered_key(ascending[i]));
    EXPECT_EQ(logit_of_key(ordered_key(ascending[i])), ascending[i]);
  }
  EXPECT_EQ(ordered_key(-0.0F), ordered_key(0.0F));
  EXPECT_EQ(ordered_key(std::nanf("")), ordered_key(-kInfinity));
  EXPECT_EQ(ordered_key(-std::nanf("")), ordered_key(-kInfinity));
}

TEST(Mass, AVocabularysMassesFit) {
  for (const int32_t vocabulary : {1, 2, 3, 32000, 262144, std::numeric_limits<int32_t>::max()}) {
    const int bits = mass_bits(vocabulary);
    const auto all = static_cast<unsigned __int128>(mass_of_weight(1.0, bits)) *
                     static_cast<uint32_t>(vocabulary);
    EXPECT_LT(all, static_cast<unsigned __int128>(1) << 63);
  }
  EXPECT_EQ(mass_of_weight(0.5, 10), 512U);
}

TEST(Mass, TargetsLieBelowIt) {
  constexpr uint64_t kMost = (uint64_t{1} << 53) - 1;
  for (const Mass mass : {Mass{1}, Mass{7}, Mass{1} << 46, (Mass{1} << 62) - 1}) {
    EXPECT_EQ(draw_target(mass, 0), 0U);
    EXPECT_EQ(draw_target(mass, kMost), mass - 1 - (mass >> 53));
  }
  EXPECT_EQ(draw_target(1000, uint64_t{1} << 52), 500U);
}

TEST(Mass, AShareIsReachedAndHoldsAtLeastOneToken) {
  EXPECT_EQ(share_of_mass(1000, 0.5), 500U);
  EXPECT_EQ(share_of_mass(1001, 0.5), 501U);
  EXPECT_EQ(share_of_mass(1000, 0.0), 1U);
  EXPECT_EQ(share_of_mass(1000, 1.0), 1000U);
}

TEST(LikeliestFirst, TheLowestIdOfEqualLogitsIsLargest) {
  EXPECT_GT(likeliest_first(5, 3), likeliest_first(5, 4));
  EXPECT_GT(likeliest_first(6, 9), likeliest_first(5, 0));
  EXPECT_EQ(id_of(likeliest_first(6, 9)), 9);
}

}  // namespace
}  // namespace lckv
