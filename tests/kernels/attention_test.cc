// Attention against double precision over a grid of shapes and masks; and byte identity of a row
// however its history is cut into blocks, staged rows and batches.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "tests/kernels/backends.h"

namespace lckv {
namespace {

// One sequence's history and queries, laid out as asked.
struct Shape {
  int32_t heads = 4;
  int32_t kv_heads = 2;
  int32_t head_dim = 16;
  int32_t slots_per_block = 4;
  int32_t committed = 10;
  int32_t staged = 6;
  int32_t rows = 3;  // the last positions
  bool strict = false;
  int32_t window = 0;
  int32_t sinks = 0;
  bool official = false;
};

struct History {
  std::vector<float> k;  // [positions, kv_heads * head_dim]
  std::vector<float> v;
  std::vector<float> q;  // [positions, heads * head_dim]
};

History random_history(const Shape& shape, uint64_t seed) {
  Random random(seed);
  const int32_t positions = shape.committed + shape.staged;
  const size_t width = static_cast<size_t>(shape.kv_heads) * shape.head_dim;
  return {random.floats(positions * width), random.floats(positions * width),
          random.floats(static_cast<size_t>(positions) * shape.heads * shape.head_dim)};
}

struct Output {
  std::vector<float> out;  // [rows, heads * head_dim]
  std::vector<float> log_sum_exp;
};

Output attend(Ops& ops, const Shape& shape, const History& history) {
  const int32_t positions = shape.committed + shape.staged;
  const int64_t width = static_cast<int64_t>(shape.kv_heads) * shape.head_dim;
  KvLayout layout{.slots_per_block = shape.slots_per_block,
                  .kv_heads = shape.kv_heads,
                  .head_dim = shape.head_dim,
                  .dtype = ops.dtype()};
  const auto size = static_cast<int64_t>(dtype_bytes(layout.dtype));
  layout.block_bytes = 2 * width * shape.slots_per_block * size + 64;
  const int32_t num_blocks = positions / shape.slots_per_block + 2;
  // What was never written must not matter: NaN.
  const auto memory = nan_on_device(ops, num_blocks * layout.block_bytes);
  layout.base = memory->data();
  std::vector<int32_t> blocks(num_blocks);
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  std::vector<int32_t> all(positions);
  std::iota(all.begin(), all.end(), 0);
  std::vector<int32_t> block_of;
  std::vector<int32_t> slot_of;
  for (int32_t i = 0; i < shape.committed; ++i) {
    block_of.push_back(blocks[i / shape.slots_per_block]);
    slot_of.push_back(i % shape.slots_per_block);
  }
  const auto k = on_device(ops, history.k);
  const auto v = on_device(ops, history.v);
  const auto q = on_device(ops, history.q);
  ops.append_kv(k->floats(), v->floats(), width, layout, block_of, slot_of);

  const int32_t staging_rows = shape.staged + 3;
  const auto staged_k = nan_on_device(ops, staging_rows * width * size);
  const auto staged_v = nan_on_device(ops, staging_rows * width * size);
  std::vector<int32_t> staged_rows(shape.staged);
  std::iota(staged_rows.rbegin(), staged_rows.rend(), 2);
  ops.stage_kv(k->floats() + shape.committed * width, v->floats() + shape.committed * width, width,
               layout, staged_rows, {staged_k->data(), staged_v->data()});

  const AttentionSegment segment{.row_begin = 0,
                                 .row_end = shape.rows,
                                 .blocks = blocks.data(),
                                 .slot_positions = all.data(),
                                 .num_slots = shape.committed,
                                 .staged_rows = staged_rows.data(),
                                 .staged_positions = all.data() + shape.committed,
                                 .num_staged = shape.staged};
  const int64_t q_width = static_cast<int64_t>(shape.heads) * shape.head_dim;
  const std::vector<uint8_t> official(shape.rows, 1);
  const auto out = empty_operand(ops, shape.rows, q_width);
  const auto log_sum_exp = nan_on_device(ops, shape.rows * shape.heads * sizeof(float));
  ops.attention({.q = q->floats() + (positions - shape.rows) * q_width,
                 .out = out->data(),
                 .positions = all.data() + positions - shape.rows,
                 .num_heads = shape.heads,
                 .scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim)),
                 .strict = shape.strict,
                 .window = shape.window,
                 .num_sinks = shape.sinks,
                 .official_decode = shape.official ? official.data() : nullptr,
                 .layout = layout,
                 .staged = {staged_k->data(), staged_v->data()},
                 .segments = {&segment, 1},
                 .log_sum_exp = log_sum_exp->floats()});
  return {from_operand(ops, *out, q_width), from_device(ops, *log_sum_exp)};
}

// Softmax in double precision, straight from the definition.
void expect_definition(const Shape& shape, const History& history, const Backend& backend,
                       const Ops& ops, const Output& output) {
  const DType dtype = backend.dtype;
  const DType query_dtype = backend.rounds_attention ? dtype : DType::kFloat32;
  // A weight is rounded once, by no more than this part of it. Sums on tensor cores are of float32
  // at least, but how they are rounded is not said: not always to the nearest.
  const double weight_error = backend.rounds_attention ? backend.epsilon() : 0.0;
  const double sum_error = backend.rounds_attention ? 0x1p-23 : 0x1p-24;
  const int32_t positions = shape.committed + shape.staged;
  const int64_t width = static_cast<int64_t>(shape.kv_heads) * shape.head_dim;
  for (int32_t row = 0; row < shape.rows; ++row) {
    const int32_t t = positions - shape.rows + row;
    for (int32_t head = 0; head < shape.heads; ++head) {
      const int64_t at = head / (shape.heads / shape.kv_heads) * shape.head_dim;
      const auto sees = [&shape, t](int32_t j) {
        return j < (shape.strict ? t : t + 1) &&
               (shape.window == 0 || j > t - shape.window || j < shape.sinks);
      };
      std::vector<int32_t> seen;
      for (int32_t j = 0; j <= t; ++j) {
        if (sees(shape.official ? j + 1 : j)) seen.push_back(j);
      }
      const bool zero_key = shape.official && sees(0);
      const float* const q =
          &history.q[(static_cast<int64_t>(t) * shape.heads + head) * shape.head_dim];
      double norm = zero_key ? 1.0 : 0.0;
      std::vector<double> sum(shape.head_dim);
      std::vector<double> size_sum(shape.head_dim);
      double size = 1.0;
      for (const int32_t j : seen) {
        double score = 0.0;
        for (int32_t i = 0; i < shape.head_dim; ++i) {
          score += static_cast<double>(rounded(q[i], query_dtype)) *
                   rounded(history.k[j * width + at + i], dtype);
        }
        const double weight = std::exp(score / std::sqrt(shape.head_dim));
        norm += weight;
        for (int32_t i = 0; i < shape.head_dim; ++i) {
          const double value = rounded(history.v[j * width + at + i], dtype);
          sum[i] += weight * value;
          size_sum[i] += weight * std::abs(value);
          size = std::max(size, std::abs(value));
        }
      }
      for (int32_t i = 0; i < shape.head_dim; ++i) {
        const double expected = norm > 0.0 ? sum[i] / norm : 0.0;
        const float got =
            output.out[(static_cast<int64_t>(row) * shape.heads + head) * shape.head_dim + i];
        // Scores carry head_dim roundings, weights the error of one exp, sums one rounding a
        // position.
        const double roundings =
            4.0 * shape.head_dim + 4.0 * static_cast<double>(seen.size()) + 16.0;
        const double tolerance = roundings * sum_error * size + operand_error(ops, expected) +
                                 (norm > 0.0 ? weight_error * size_sum[i] / norm : 0.0);
        ASSERT_NEAR(got, expected, tolerance) << "row " << row << " head " << head;
      }
      const float lse = output.log_sum_exp[row * shape.heads + head];
      if (norm > 0.0) {
        ASSERT_NEAR(lse, std::log(norm), 1e-5 * (1.0 + std::abs(std::log(norm))));
      } else {
        ASSERT_EQ(lse, -std::numeric_limits<float>::infinity());
      }
    }
  }
}

std::vector<Shape> shapes() {
  std::vector<Shape> out;
  Random random(17);
  for (const int32_t head_dim : {16, 32, 48, 64, 80, 96, 128, 256}) {
    for (const auto& [heads, kv_heads] : {std::pair(4, 4), {4, 2}, {8, 1}, {6, 3}}) {
      for (int variant = 0; variant < 7; ++variant) {
        Shape shape{.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim};
        shape.slots_per_block = 1 << random.below(6);
        shape.committed = random.below(150);
        shape.staged = random.below(40) + 1;
        shape.rows = 1 + random.below(shape.staged);
        shape.strict = variant % 2 == 0;
        shape.window = variant == 2 || variant == 3 ? 1 + random.below(90) : 0;
        shape.sinks = variant == 3 ? random.below(5) : 0;
        shape.official = variant == 4 || variant == 6;
        if (variant == 6) shape.window = 1 + random.below(shape.committed + 40);
        out.push_back(shape);
      }
    }
  }
  // The first token of all: nothing to see; and a prompt of staged rows only.
  out.push_back({.committed = 0, .staged = 1, .rows = 1, .strict = true});
  out.push_back({.committed = 0, .staged = 70, .rows = 70, .strict = true});
  out.push_back({.committed = 0, .staged = 2, .rows = 2, .strict = true, .official = true});
  // More heads to a KV head than any block computes.
  out.push_back({.heads = 71, .kv_heads = 1, .committed = 70, .staged = 3, .strict = true});
  // Histories that are split, some into pieces that nothing is seen of.
  for (const int32_t window : {0, 60, 600}) {
    for (const bool official : {false, true}) {
      out.push_back({.heads = 8,
                     .head_dim = 32,
                     .slots_per_block = 16,
                     .committed = 1190,
                     .staged = 23,
                     .rows = 23,
                     .strict = !official,
                     .window = window,
                     .sinks = official ? 0 : window / 4,
                     .official = official});
    }
  }
  return out;
}

class Attention : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(All, Attention, testing::ValuesIn(all_backends()), backend_name);

TEST_P(Attention, MatchesItsDefinition) {
  const auto ops = GetParam().open();
  uint64_t seed = 100;
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(testing::Message()
                 << "heads " << shape.heads << "/" << shape.kv_heads << " size " << shape.head_dim
                 << " block " << shape.slots_per_block << " committed " << shape.committed
                 << " staged " << shape.staged << " rows " << shape.rows << " strict "
                 << shape.strict << " window " << shape.window << " official " << shape.official);
    const History history = random_history(shape, ++seed);
    expect_definition(shape, history, GetParam(), *ops, attend(*ops, shape, history));
  }
}

// Also of the large ones nothing is left where their weight is zero, not even a rounding.
TEST_P(Attention, ValuesReachOnlyRowsThatSeeThem) {
  const auto ops = GetParam().open();
  Shape shape{.heads = 6, .head_dim = 32, .slots_per_block = 8, .committed = 100, .staged = 20};
  shape.rows = 20;
  shape.window = 50;
  const History history = random_history(shape, 7);
  const Output usual = attend(*ops, shape, history);
  const int32_t last = shape.committed + shape.staged - 1;
  const size_t width = static_cast<size_t>(shape.heads) * shape.head_dim;
  const size_t kv_width = static_cast<size_t>(shape.kv_heads) * shape.head_dim;
  using Limits = std::numeric_limits<float>;
  for (const auto& [early, late] :
       {std::pair(3e4F, 3e4F), {Limits::infinity(), Limits::quiet_NaN()}}) {
    History spoiled = history;
    // Each is seen by one row alone, though all are in tiles that others see too.
    std::fill_n(&spoiled.v[(last + 2 - shape.rows - shape.window) * kv_width], kv_width, early);
    std::fill_n(&spoiled.v[last * kv_width], kv_width, late);
    const Output got = attend(*ops, shape, spoiled);
    EXPECT_GT(got.out[0], 50.0F);
    EXPECT_TRUE(same_bytes(&usual.out[width], &got.out[width], (shape.rows - 2) * width));
    EXPECT_FALSE(got.out[(shape.rows - 1) * width] < 50.0F);
  }
}

// Of several pieces, whose rows' shares fit into nothing, each for itself, or a few at a time.
TEST_P(Attention, LittleMemoryForSharesIsEnough) {
  if (GetParam().open_with_shares == nullptr) GTEST_SKIP() << "keeps no shares";
  const Shape shape{.slots_per_block = 16, .committed = 2100, .staged = 9, .rows = 9};
  const History history = random_history(shape, 8);
  const auto ops = GetParam().open();
  const Output enough = attend(*ops, shape, history);
  for (const size_t bytes : {size_t{64}, size_t{1} << 10, size_t{4} << 10}) {
    SCOPED_TRACE(testing::Message() << bytes << " bytes");
    const Output got = attend(*GetParam().open_with_shares(bytes), shape, history);
    expect_definition(shape, history, GetParam(), *ops, got);
    if (!GetParam().reproducible) continue;
    EXPECT_TRUE(same_bytes(enough.out.data(), got.out.data(), got.out.size()));
    EXPECT_TRUE(
        same_bytes(enough.log_sum_exp.data(), got.log_sum_exp.data(), got.log_sum_exp.size()));
  }
}

class Identity : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(All, Identity, testing::ValuesIn(reproducible_backends()), backend_name);

TEST_P(Identity, ARowDoesNotDependOnHowItsHistoryIsCut) {
  const auto ops = GetParam().open();
  for (const bool strict : {false, true}) {
    for (const int32_t window : {0, 50}) {
      const Shape base{.head_dim = 64,
                       .slots_per_block = 16,
                       .committed = 140,
                       .staged = 30,
                       .rows = 9,
                       .strict = strict,
                       .window = window,
                       .sinks = 3};
      const History history = random_history(base, 5);
      const Output expected = attend(*ops, base, history);
      const auto width = static_cast<size_t>(base.heads) * base.head_dim;
      for (const int32_t slots : {1, 8, 16, 32}) {
        for (const int32_t committed : {0, 1, 64, 100, 169}) {
          for (const int32_t rows : {1, 4, 9}) {
            Shape other = base;
            other.slots_per_block = slots;
            other.committed = committed;
            other.staged = base.committed + base.staged - committed;
            other.rows = rows;
            const Output got = attend(*ops, other, history);
            EXPECT_TRUE(
                same_bytes(&expected.out[(base.rows - rows) * width], got.out.data(), rows * width))
                << "block " << slots << " committed " << committed << " rows " << rows;
          }
        }
      }
    }
  }
}

TEST_P(Identity, ThreadsDoNotMatter) {
  const Shape shape{.heads = 8,
                    .head_dim = 64,
                    .slots_per_block = 8,
                    .committed = 140,
                    .staged = 60,
                    .rows = 50,
                    .strict = true};
  const History history = random_history(shape, 6);
  const Output one = attend(*GetParam().open(1), shape, history);
  const Output two = attend(*GetParam().open(2), shape, history);
  EXPECT_TRUE(same_bytes(one.out.data(), two.out.data(), one.out.size()));
}

// Layers of one batch read the same rows of different memory, through different masks; the next
// batch's inputs are other values in the same arrays.
TEST_P(Attention, ABatchOfCallsGivesWhatEachGivesAlone) {
  const auto ops = GetParam().open();
  constexpr int32_t kRows = 40;
  constexpr int32_t kWidth = 16;
  const KvLayout layout{
      .slots_per_block = 1, .kv_heads = 1, .head_dim = kWidth, .dtype = ops->dtype()};
  Random random(31);
  std::vector<int32_t> staged_rows(kRows);
  std::vector<int32_t> positions(kRows);
  std::iota(positions.begin(), positions.end(), 0);
  const AttentionSegment segment{.row_end = kRows,
                                 .staged_rows = staged_rows.data(),
                                 .staged_positions = positions.data(),
                                 .num_staged = kRows};
  struct Layer {
    std::unique_ptr<DeviceBuffer> q, kv, k, v;
  };
  std::vector<Layer> layers(2);
  for (Layer& layer : layers) {
    layer.q = on_device(*ops, random.floats(kRows * kWidth));
    layer.kv = on_device(*ops, random.floats(kRows * kWidth));
    layer.k = nan_on_device(*ops, kRows * kWidth * sizeof(float));
    layer.v = nan_on_device(*ops, kRows * kWidth * sizeof(float));
  }
  const auto run_layers = [&] {
    std::vector<std::vector<float>> outputs;
    for (const Layer& layer : layers) {
      ops->stage_kv(layer.kv->floats(), layer.kv->floats(), kWidth, layout, staged_rows,
                    {layer.k->data(), layer.v->data()});
      for (const int32_t window : {0, 5}) {
        const auto out = empty_operand(*ops, kRows, kWidth);
        ops->attention({.q = layer.q->floats(),
                        .out = out->data(),
                        .positions = positions.data(),
                        .num_heads = 1,
                        .window = window,
                        .layout = layout,
                        .staged = {layer.k->data(), layer.v->data()},
                        .segments = {&segment, 1}});
        outputs.push_back(from_operand(*ops, *out, kWidth));
      }
    }
    return outputs;
  };
  const auto change_inputs = [&](int32_t shift) {
    for (int32_t i = 0; i < kRows; ++i) staged_rows[i] = (i * 3 + shift) % kRows;
    positions[kRows - 1] = kRows - 1 + shift;
  };
  constexpr std::array<int32_t, 3> kShifts = {0, 1, 7};
  std::vector<std::vector<std::vector<float>>> alone;
  for (const int32_t shift : kShifts) {
    change_inputs(shift);
    alone.push_back(run_layers());
    for (size_t i = 1; i < alone.size(); ++i) EXPECT_NE(alone[i], alone[i - 1]);
  }
  for (size_t i = 0; i < kShifts.size(); ++i) {
    change_inputs(kShifts[i]);
    const OpsBatch batch(*ops, {.rows = 1 << 20});
    EXPECT_EQ(run_layers(), alone[i]);
  }
}

}  // namespace
}  // namespace lckv
