// How the CUDA backend cuts attention into the work of blocks, and what it says of a device.
#include "kernels/cuda/attention_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "kernels/cuda/device_check.h"

namespace lckv {
namespace {

using testing::Message;

// A batch of segments over histories that begin anywhere and may have gaps.
struct Batch {
  struct Sequence {
    std::vector<int32_t> blocks;
    std::vector<int32_t> slot_positions;
    std::vector<int32_t> staged_rows;
    std::vector<int32_t> staged_positions;
  };
  std::vector<Sequence> sequences;
  std::vector<int32_t> positions;
  std::vector<AttentionSegment> segments;
  AttentionArgs args;
};

Batch random_batch(std::mt19937& random) {
  const auto below = [&](int bound) { return static_cast<int32_t>(random() % bound); };
  Batch batch;
  batch.args.num_heads = 4 << below(4);
  batch.args.layout = {.slots_per_block = 1 << below(5),
                       .kv_heads = 1 << below(3),
                       .head_dim = 64,
                       .dtype = below(2) == 0 ? DType::kFloat32 : DType::kBFloat16};
  batch.args.strict = below(2) == 0;
  batch.args.window = below(2) * (1 + below(600));
  batch.args.num_sinks = below(3) * 40;
  for (int32_t count = 1 + below(4); count > 0; --count) {
    Batch::Sequence sequence;
    int32_t position = below(2) * below(300);
    const bool has_gaps = below(3) == 0;
    const auto next = [&] {
      if (has_gaps && below(9) == 0) position += 70;
      return position++;
    };
    for (int32_t i = below(1500); i > 0; --i) sequence.slot_positions.push_back(next());
    for (int32_t i = below(30); i > 0; --i) sequence.staged_positions.push_back(next());
    sequence.staged_rows.resize(sequence.staged_positions.size());
    std::iota(sequence.staged_rows.begin(), sequence.staged_rows.end(), below(50));
    sequence.blocks.resize(sequence.slot_positions.size() / batch.args.layout.slots_per_block + 1);
    std::iota(sequence.blocks.begin(), sequence.blocks.end(), below(100));
    batch.sequences.push_back(sequence);
    const auto row_begin = static_cast<int32_t>(batch.positions.size());
    for (int32_t row = below(20); row >= 0; --row) batch.positions.push_back(position++);
    batch.segments.push_back(
        {.row_begin = row_begin, .row_end = static_cast<int32_t>(batch.positions.size())});
  }
  for (size_t i = 0; i < batch.segments.size(); ++i) {
    const Batch::Sequence& sequence = batch.sequences[i];
    AttentionSegment& segment = batch.segments[i];
    segment.blocks = sequence.blocks.data();
    segment.slot_positions = sequence.slot_positions.data();
    segment.num_slots = static_cast<int32_t>(sequence.slot_positions.size());
    segment.staged_rows = sequence.staged_rows.data();
    segment.staged_positions = sequence.staged_positions.data();
    segment.num_staged = static_cast<int32_t>(sequence.staged_positions.size());
  }
  batch.args.positions = batch.positions.data();
  batch.args.segments = batch.segments;
  return batch;
}

// What one row meets in a plan: positions, by piece.
void add_positions_met(const AttentionPlan& plan, int32_t row, int32_t& pieces,
                       std::map<int32_t, std::set<int32_t>>& by_piece) {
  for (const AttentionItem& item : plan.items) {
    if (row < item.row_begin || row >= item.row_begin + item.num_rows) continue;
    ++pieces;
    const SegmentPlan& segment = plan.segments[item.segment];
    for (int32_t tile = first_tile_of(item); tile < item.end_tile; tile = tile_after(item, tile)) {
      for (int32_t lane = 0; lane < kAttentionTile; ++lane) {
        const int32_t position = tile * kAttentionTile + lane;
        const int32_t entry = entry_at(plan.runs.data() + segment.first_run, segment.num_runs,
                                       segment.num_entries, position);
        if (entry < 0 || !WindowMask::sees(plan.seen[row - plan.first_row], position)) continue;
        EXPECT_TRUE(by_piece[pieces].insert(position).second) << "twice: " << position;
      }
    }
  }
}

// In all of a call's plans.
std::map<int32_t, std::set<int32_t>> positions_met(const std::vector<AttentionPlan>& plans,
                                                   int32_t row) {
  std::map<int32_t, std::set<int32_t>> by_piece;
  int32_t pieces = 0;
  for (const AttentionPlan& plan : plans) add_positions_met(plan, row, pieces, by_piece);
  return by_piece;
}

// The same without the pieces in which nothing is met: those are passed over.
std::vector<std::set<int32_t>> pieces_met(const std::vector<AttentionPlan>& plans, int32_t row) {
  std::vector<std::set<int32_t>> out;
  for (const auto& [piece, positions] : positions_met(plans, row)) out.push_back(positions);
  return out;
}

// Limits that few rows at once, but always one, keep within.
AttentionPlanOptions limited(const Batch& batch, uint32_t seed) {
  size_t entries = 0;
  for (const Batch::Sequence& sequence : batch.sequences) {
    entries = std::max(entries, sequence.slot_positions.size());
  }
  const int32_t last = *std::max_element(batch.positions.begin(), batch.positions.end());
  const bool reproducible = seed % 2 == 0;
  const int32_t pieces = reproducible ? last / kAttentionTile / kReproducibleSplitTiles + 1 : 2;
  return {.num_multiprocessors = 1 + static_cast<int32_t>(seed % 7),
          .reproducible = reproducible,
          .max_upload_bytes = 4096 + entries * (1 + seed % 3) * sizeof(HistoryRun),
          .max_share_bytes = pieces * (1 + seed % 5) * share_bytes(batch.args)};
}

TEST(AttentionPlan, EveryRowMeetsWhatItSeesOnce) {
  for (uint32_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(Message() << "seed " << seed);
    std::mt19937 random(seed);
    const Batch batch = random_batch(random);
    AttentionPlanOptions options = limited(batch, seed);
    if (seed % 4 < 2) options.max_upload_bytes = options.max_share_bytes = SIZE_MAX;
    const std::vector<AttentionPlan> plans = plan_attention(batch.args, options);
    for (size_t i = 0; i < batch.segments.size(); ++i) {
      std::vector<int32_t> all = batch.sequences[i].slot_positions;
      all.insert(all.end(), batch.sequences[i].staged_positions.begin(),
                 batch.sequences[i].staged_positions.end());
      for (int32_t row = batch.segments[i].row_begin; row < batch.segments[i].row_end; ++row) {
        const int32_t t = batch.positions[row];
        std::set<int32_t> expected;
        for (const int32_t j : all) {
          if (j > t || (batch.args.strict && j == t)) continue;
          if (batch.args.window > 0 && j <= t - batch.args.window && j >= batch.args.num_sinks) {
            continue;
          }
          expected.insert(j);
        }
        std::set<int32_t> met;
        for (const auto& [piece, positions] : positions_met(plans, row)) {
          for (const int32_t position : positions) {
            EXPECT_TRUE(met.insert(position).second) << "in two pieces: " << position;
          }
        }
        ASSERT_EQ(met, expected) << "row " << row;
      }
    }
  }
}

TEST(AttentionPlan, SharesOfSplitRowsFollowEachOther) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    const Batch batch = random_batch(random);
    const std::vector<AttentionPlan> plans =
        plan_attention(batch.args, {.num_multiprocessors = 40});
    ASSERT_EQ(plans.size(), 1U);
    const AttentionPlan& plan = plans[0];
    std::map<int32_t, const AttentionItem*> by_partial;
    std::set<int32_t> whole;
    for (const AttentionItem& item : plan.items) {
      if (item.partial < 0) {
        EXPECT_TRUE(whole.insert(item.row_begin).second);
      } else {
        EXPECT_TRUE(by_partial.try_emplace(item.partial, &item).second);
      }
    }
    int32_t next = 0;
    size_t num_pieces = 0;
    for (const MergeItem& merge : plan.merges) {
      EXPECT_EQ(merge.first_partial, next);
      EXPECT_GT(merge.num_pieces, 1);
      for (int32_t piece = 0; piece < merge.num_pieces; ++piece, next += merge.num_rows) {
        const AttentionItem& item = *by_partial.at(next);
        EXPECT_EQ(item.row_begin, merge.row_begin);
        EXPECT_EQ(item.num_rows, merge.num_rows);
        if (piece > 0) {
          EXPECT_LE(by_partial.at(next - merge.num_rows)->end_tile, item.first_tile);
        }
        ++num_pieces;
      }
      EXPECT_FALSE(whole.contains(merge.row_begin));
    }
    EXPECT_EQ(next, plan.num_partials);
    EXPECT_EQ(num_pieces, by_partial.size());
  }
}

// What a row's sums are made of must not depend on what else is in the batch.
TEST(AttentionPlan, ReproducibleCutsDependOnTheRowAlone) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(Message() << "seed " << seed);
    std::mt19937 random(seed);
    Batch batch = random_batch(random);
    const AttentionPlanOptions options{.num_multiprocessors = 3, .reproducible = true};
    const std::vector<AttentionPlan> together = plan_attention(batch.args, options);
    for (const AttentionSegment& segment : batch.segments) {
      for (int32_t row = segment.row_begin; row < segment.row_end; ++row) {
        AttentionSegment alone = segment;
        alone.row_begin = row;
        alone.row_end = row + 1;
        AttentionArgs args = batch.args;
        args.segments = {&alone, 1};
        EXPECT_EQ(pieces_met(together, row), pieces_met(plan_attention(args, options), row));
      }
    }
  }
}

TEST(AttentionPlan, KeepsWithinItsLimits) {
  size_t most_plans = 0;
  for (uint32_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(Message() << "seed " << seed);
    std::mt19937 random(seed);
    const Batch batch = random_batch(random);
    const AttentionPlanOptions options = limited(batch, seed);
    const std::vector<AttentionPlan> plans = plan_attention(batch.args, options);
    most_plans = std::max(most_plans, plans.size());
    std::set<int32_t> written;
    for (const AttentionPlan& plan : plans) {
      EXPECT_LE(plan.upload_bytes(), options.max_upload_bytes);
      EXPECT_EQ(plan.first_row, plan.items.front().row_begin);
      EXPECT_LE(plan.num_partials * share_bytes(batch.args), options.max_share_bytes);
      const auto write = [&](const auto& rows) {
        for (int32_t row = rows.row_begin; row < rows.row_begin + rows.num_rows; ++row) {
          EXPECT_TRUE(written.insert(row).second) << "row " << row;
          ASSERT_GE(row, plan.first_row);
          ASSERT_LT(static_cast<size_t>(row - plan.first_row), plan.seen.size());
        }
      };
      for (const AttentionItem& item : plan.items) {
        if (item.partial < 0) write(item);
      }
      for (const MergeItem& merge : plan.merges) write(merge);
    }
    EXPECT_EQ(written.size(), batch.positions.size());
  }
  EXPECT_GT(most_plans, 20U);
}

// Of the memory there is nothing is left unused: a plan ends where the next rows do not fit.
TEST(AttentionPlan, IsOneWhereOneIsEnough) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(Message() << "seed " << seed);
    std::mt19937 random(seed);
    const Batch batch = random_batch(random);
    AttentionPlanOptions options{.num_multiprocessors = 3, .reproducible = seed % 2 == 0};
    const std::vector<AttentionPlan> whole = plan_attention(batch.args, options);
    ASSERT_EQ(whole.size(), 1U);
    options.max_upload_bytes = whole[0].upload_bytes();
    options.max_share_bytes = whole[0].num_partials * share_bytes(batch.args);
    EXPECT_EQ(plan_attention(batch.args, options).size(), 1U);
    const auto num_groups = std::count_if(whole[0].items.begin(), whole[0].items.end(),
                                          [](const auto& item) { return item.partial < 0; }) +
                            static_cast<int64_t>(whole[0].merges.size());
    --options.max_upload_bytes;
    EXPECT_EQ(plan_attention(batch.args, options).size() > 1, num_groups > 1);
  }
}

TEST(AttentionPlan, ReproducibleCutsDoNotDependOnTheLimits) {
  for (uint32_t seed = 0; seed < 100; seed += 2) {
    SCOPED_TRACE(Message() << "seed " << seed);
    std::mt19937 random(seed);
    const Batch batch = random_batch(random);
    AttentionPlanOptions options = limited(batch, seed);
    const std::vector<AttentionPlan> limited_plans = plan_attention(batch.args, options);
    options.max_upload_bytes = options.max_share_bytes = SIZE_MAX;
    const std::vector<AttentionPlan> whole = plan_attention(batch.args, options);
    for (int32_t row = 0; row < static_cast<int32_t>(batch.positions.size()); ++row) {
      EXPECT_EQ(pieces_met(limited_plans, row), pieces_met(whole, row)) << "row " << row;
    }
  }
}

TEST(SplitTiles, FillsTheDeviceWithoutCuttingTooShort) {
  EXPECT_EQ(split_tiles(10, {.num_multiprocessors = 132}), kSplitTilesMin);
  EXPECT_EQ(split_tiles(1, {.num_multiprocessors = 1, .reproducible = true}),
            kReproducibleSplitTiles);
  EXPECT_EQ(split_tiles(1'000'000, {.num_multiprocessors = 1, .reproducible = true}),
            kReproducibleSplitTiles);
  // As many pieces as run at once: no more memory for shares than these take.
  const int32_t length = split_tiles(1'000'000, {.num_multiprocessors = 100});
  EXPECT_NEAR(1'000'000 / length, 800, 5);
}

DeviceFacts fit_device() {
  return {.device = 1,
          .driver_version = 13010,
          .runtime_version = 13000,
          .num_devices = 2,
          .name = "Device Name",
          .capability = 90,
          .has_kernels = true,
          .architectures = "80;90a",
          .free_bytes = uint64_t{10} << 30,
          .total_bytes = uint64_t{16} << 30,
          .required_bytes = uint64_t{10} << 30};
}

std::string problem(const DeviceFacts& facts) { return check_device(facts).ToString(); }

TEST(CheckDevice, SaysWhatIsMissingInOneLine) {
  EXPECT_TRUE(check_device(fit_device()).ok());
  DeviceFacts facts = fit_device();
  facts.driver_version = 0;
  facts.num_devices = 0;
  EXPECT_EQ(problem(facts), "FAILED_PRECONDITION: no CUDA driver on this machine");
  facts.driver_version = 12080;
  EXPECT_EQ(problem(facts),
            "FAILED_PRECONDITION: the CUDA driver is too old: it is for CUDA 12.8, this program "
            "for CUDA 13.0");
  facts.driver_version = 13000;
  EXPECT_EQ(problem(facts), "FAILED_PRECONDITION: no CUDA device to be seen");
  facts = fit_device();
  facts.device = 2;
  EXPECT_EQ(problem(facts), "OUT_OF_RANGE: no CUDA device 2: there are 2, counted from 0");
  facts.device = -1;
  EXPECT_EQ(problem(facts), "OUT_OF_RANGE: no CUDA device -1: there are 2, counted from 0");
  facts = fit_device();
  facts.has_kernels = false;
  facts.capability = 75;
  EXPECT_EQ(problem(facts),
            "FAILED_PRECONDITION: CUDA device 1 (Device Name) has compute capability 7.5; this "
            "program was built for 80;90a");
  facts = fit_device();
  facts.required_bytes += uint64_t{1} << 29;
  EXPECT_EQ(problem(facts),
            "RESOURCE_EXHAUSTED: CUDA device 1 (Device Name) has 10.00 GiB of 16.00 GiB free, and "
            "10.50 GiB are needed");
}

TEST(CheckHeadDim, NamesTheSizesThereAre) {
  for (const int32_t size : {16, 64, 128, 256}) EXPECT_TRUE(check_head_dim(size).ok()) << size;
  EXPECT_EQ(check_head_dim(112).ToString(),
            "FAILED_PRECONDITION: config.json: head_dim: 112: attention on CUDA devices is there "
            "for 16, 32, 48, 64, 80, 96, 128, 256");
}

}  // namespace
}  // namespace lckv
