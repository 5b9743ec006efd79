// Row operations against double precision.
#include <algorithm>
#include <numbers>
#include <utility>

#include "kernels/weight_values.h"
#include "tests/kernels/backends.h"

namespace lckv {
namespace {

class RowOps : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(All, RowOps, testing::ValuesIn(all_backends()), backend_name);

TEST_P(RowOps, RmsNorm) {
  const auto ops = GetParam().open();
  Random random(1);
  for (const int64_t hidden : {1, 7, 64, 257, 2048}) {
    const auto x = random.floats(3 * hidden, 2.0F);
    const auto weight = random.floats(hidden);
    const auto normed = empty_operand(*ops, 3, hidden);
    ops->rms_norm(on_device(*ops, x)->floats(), on_device(*ops, weight)->floats(), 1e-5F, 3, hidden,
                  normed->data());
    const std::vector<float> out = from_operand(*ops, *normed, hidden);
    for (int64_t row = 0; row < 3; ++row) {
      double sum = 0.0;
      for (int64_t i = 0; i < hidden; ++i) sum += std::pow(x[row * hidden + i], 2.0);
      const double scale = 1.0 / std::sqrt(sum / static_cast<double>(hidden) + 1e-5);
      for (int64_t i = 0; i < hidden; ++i) {
        const double expected = x[row * hidden + i] * scale * weight[i];
        ASSERT_NEAR(out[row * hidden + i], expected,
                    (static_cast<double>(hidden) / 8 + 8) * 0x1p-24 * std::abs(expected) +
                        operand_error(*ops, expected) + 1e-30);
      }
    }
  }
}

TEST_P(RowOps, SiluMul) {
  const auto ops = GetParam().open();
  Random random(2);
  constexpr int64_t kInner = 100;
  auto gate_up = random.floats(2 * 2 * kInner, 4.0F);
  gate_up[0] = 100.0F;
  gate_up[1] = -100.0F;
  const auto product = empty_operand(*ops, 2, kInner);
  ops->silu_mul(on_device(*ops, gate_up)->floats(), 2, kInner, product->data());
  const std::vector<float> out = from_operand(*ops, *product, kInner);
  for (int64_t i = 0; i < 2 * kInner; ++i) {
    const int64_t at = i / kInner * 2 * kInner + i % kInner;
    const double gate = gate_up[at];
    const double expected = gate / (1.0 + std::exp(-gate)) * gate_up[at + kInner];
    ASSERT_NEAR(out[i], expected, 1e-6 * std::abs(expected) + 1e-7 + operand_error(*ops, expected));
  }
}

double llama3_frequency(double frequency) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < 8192.0 / 4.0) return frequency;
  if (wavelength > 8192.0) return frequency / 8.0;
  const double smooth = (8192.0 / wavelength - 1.0) / 3.0;
  return (1.0 - smooth) * frequency / 8.0 + smooth * frequency;
}

TEST_P(RowOps, Rope) {
  const auto ops = GetParam().open();
  Random random(3);
  constexpr int32_t kHeads = 3;
  using Scaling = RopeOptions::Scaling;
  for (const int32_t head_dim : {16, 64, 128}) {
    for (const Scaling scaling : {Scaling::kNone, Scaling::kLinear, Scaling::kLlama3}) {
      const RopeOptions options{
          .theta = 500000.0, .scaling = scaling, .factor = 8.0, .head_dim = head_dim};
      const auto table = ops->rope_table(options, 600);
      const std::vector<int32_t> positions = {0, 5, 599};
      const int64_t stride = kHeads * head_dim + 5;
      const auto before = random.floats(positions.size() * stride);
      const auto rows = on_device(*ops, before);
      ops->rope(rows->floats(), stride, positions, kHeads, head_dim, *table);
      const std::vector<float> x = from_device(*ops, *rows);
      for (size_t row = 0; row < positions.size(); ++row) {
        for (int32_t head = 0; head < kHeads; ++head) {
          for (int32_t i = 0; i < head_dim / 2; ++i) {
            double frequency = std::pow(500000.0, -2.0 * i / head_dim);
            if (scaling == Scaling::kLinear) frequency /= 8.0;
            if (scaling == Scaling::kLlama3) frequency = llama3_frequency(frequency);
            const double angle = positions[row] * frequency;
            const size_t low = row * stride + head * head_dim + i;
            const size_t high = low + head_dim / 2;
            // The angle itself is rounded to float32.
            const double tolerance =
                8.0 * 0x1p-24 * (1.0 + angle) * (std::abs(before[low]) + std::abs(before[high]));
            ASSERT_NEAR(x[low], before[low] * std::cos(angle) - before[high] * std::sin(angle),
                        tolerance);
            ASSERT_NEAR(x[high], before[high] * std::cos(angle) + before[low] * std::sin(angle),
                        tolerance);
          }
        }
        ASSERT_EQ(x[row * stride + kHeads * head_dim], before[row * stride + kHeads * head_dim]);
      }
    }
  }
}

// A matrix of a checkpoint, in its memory.
struct Checkpoint {
  Checkpoint(Random& random, DType dtype, int64_t n, int64_t k)
      : bytes(static_cast<size_t>(n * k) * dtype_bytes(dtype)),
        source{.data = bytes.data(), .dtype = dtype, .n = n, .k = k} {
    const auto values = random.floats(n * k);
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::kFloat32) {
        reinterpret_cast<float*>(bytes.data())[i] = values[i];
      } else {
        // As binary16 these are small numbers, subnormal ones among them.
        const uint16_t bits = float_to_bfloat16(values[i]);
        reinterpret_cast<uint16_t*>(bytes.data())[i] =
            dtype == DType::kFloat16 ? bits & 0xBFFF : bits;
      }
    }
  }
  std::vector<float> rows(DType compute, const std::vector<int32_t>& ids) const {
    std::vector<float> out;
    for (const int32_t id : ids) {
      for (int64_t i = 0; i < source.k; ++i) {
        out.push_back(id < 0 ? 0.0F : rounded(weight_value(source, id * source.k + i), compute));
      }
    }
    return out;
  }

  std::vector<std::byte> bytes;
  WeightSource source;
};

// The odd ones of the ids are known, the others lie on the device.
std::vector<float> embed(Ops& ops, const EmbeddingTable& table, const std::vector<int32_t>& ids,
                         int32_t first = 0) {
  const auto drawn = ops.allocate(ids.size() * sizeof(int32_t));
  ops.copy(reinterpret_cast<const std::byte*>(ids.data()), drawn->data(), drawn->bytes());
  const auto* const places = reinterpret_cast<const int32_t*>(drawn->data());
  std::vector<TokenId> tokens;
  for (size_t i = 0; i < ids.size(); ++i) {
    tokens.push_back(i % 2 == 0 ? TokenId{.drawn = places + i} : TokenId{.id = ids[i]});
  }
  const auto out = nan_on_device(ops, ids.size() * table.k() * sizeof(float));
  ops.embed(table, tokens, first, out->floats());
  return from_device(ops, *out);
}

TEST_P(RowOps, EmbedsRowsOfEveryFormat) {
  const auto ops = GetParam().open();
  Random random(4);
  const std::vector<int32_t> ids = {9, 0, -1, 3, 3};
  for (const DType dtype : kDTypes) {
    for (const int64_t hidden : {24, 5, 301}) {  // whole chunks of 16 bytes, and others
      Checkpoint checkpoint(random, dtype, 10, hidden);
      const auto table = ops->pack_table(checkpoint.source, nullptr);
      EXPECT_EQ(table->n(), 10);
      EXPECT_EQ(table->k(), hidden);
      EXPECT_EQ(table->bytes() == 0, table->reads_source());
      const auto expected = checkpoint.rows(ops->dtype(), ids);
      if (!table->reads_source()) std::ranges::fill(checkpoint.bytes, std::byte{0xFF});
      const auto found = embed(*ops, *table, ids);
      ASSERT_TRUE(same_bytes(found.data(), expected.data(), expected.size()))
          << dtype_name(dtype) << ", " << hidden;
    }
  }
}

TEST_P(RowOps, EmbedsAShareOfTheIds) {
  const auto ops = GetParam().open();
  Random random(5);
  const Checkpoint checkpoint(random, DType::kFloat32, 6, 24);
  const auto table = ops->pack_table(checkpoint.source, nullptr);
  const auto found = embed(*ops, *table, {11, 12, 17, 18, 0, 14, 13}, 12);
  const auto expected = checkpoint.rows(ops->dtype(), {-1, 0, 5, -1, -1, 2, 1});
  EXPECT_TRUE(same_bytes(found.data(), expected.data(), expected.size()));
}

TEST_P(RowOps, EmbedsWithoutIdsOfItsOwn) {
  const auto ops = GetParam().open();
  const auto table = ops->pack_table({.n = 0, .k = 24}, nullptr);
  EXPECT_EQ(embed(*ops, *table, {0, 7}, 7), std::vector<float>(2 * 24, 0.0F));
  EXPECT_TRUE(embed(*ops, *table, {}).empty());
}

// The weight may have more rows: those of a vocabulary's last share that are padding.
TEST_P(RowOps, ATiedTableIsTheWeightsFirstRows) {
  const auto ops = GetParam().open();
  Random random(7);
  Checkpoint checkpoint(random, DType::kBFloat16, 6, 21);
  const Checkpoint beyond(random, DType::kBFloat16, 2, 21);
  const std::vector<WeightSource> rows = {checkpoint.source, beyond.source};
  const auto weight = ops->pack(rows);
  const auto table = ops->pack_table(checkpoint.source, weight.get());
  EXPECT_EQ(table->n(), 6);
  EXPECT_EQ(table->bytes(), 0U);
  const std::vector<int32_t> ids = {5, 0, -1, 2};
  const auto expected = checkpoint.rows(ops->dtype(), ids);
  if (!table->reads_source()) std::ranges::fill(checkpoint.bytes, std::byte{0xFF});
  const auto found = embed(*ops, *table, ids);
  EXPECT_TRUE(same_bytes(found.data(), expected.data(), expected.size()));
}

TEST_P(RowOps, GatherScatter) {
  const auto ops = GetParam().open();
  Random random(4);
  constexpr int64_t kHidden = 24;
  const auto table = random.floats(10 * kHidden);
  const std::vector<int32_t> ids = {9, 0, 3, 3};
  const size_t bytes = ids.size() * kHidden * sizeof(float);
  const auto some = ops->allocate(bytes);
  ops->gather_rows(on_device(*ops, table)->floats(), ids, kHidden, some->floats());
  const std::vector<float> gathered = from_device(*ops, *some);
  const auto all = ops->allocate(table.size() * sizeof(float));
  ops->scatter_rows(some->floats(), ids, kHidden, all->floats());
  const std::vector<float> scattered = from_device(*ops, *all);
  for (size_t row = 0; row < ids.size(); ++row) {
    for (int64_t i = 0; i < kHidden; ++i) {
      const float expected = table[ids[row] * kHidden + i];
      ASSERT_EQ(gathered[row * kHidden + i], expected);
      ASSERT_EQ(scattered[ids[row] * kHidden + i], expected);
    }
  }
}

TEST_P(RowOps, CopiesColumns) {
  const auto ops = GetParam().open();
  const auto from = on_device(*ops, std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8});
  const auto to = on_device(*ops, std::vector<float>(9, 0.0F));
  ops->copy_columns(from->floats() + 1, 4, 2, 2, to->floats() + 1, 5);
  EXPECT_EQ(from_device(*ops, *to), (std::vector<float>{0, 2, 3, 0, 0, 0, 6, 7, 0}));
  ops->copy_columns(from->floats(), 4, 0, 2, to->floats(), 5);
  EXPECT_EQ(from_device(*ops, *to)[0], 0.0F);
}

TEST_P(RowOps, SendsResultsBehindWhatWritesThem) {
  const auto ops = GetParam().open();
  const auto results = ops->allocate_results(sizeof(int32_t) * 4);
  auto* const ids = reinterpret_cast<int32_t*>(results->device());
  const auto logits = on_device(*ops, std::vector<float>{0, 0, 5, 0});
  const SampleArgs third{.logits = logits->floats(), .vocabulary = 4, .temperature = 0.0F};
  for (int32_t turn = 0; turn < 2; ++turn) {
    SampleArgs args = third;
    args.drawn = ids + turn;
    ops->sample({&args, 1});
    results->send(sizeof(int32_t) * 2);
    results->wait();
    EXPECT_TRUE(results->is_there());
    EXPECT_EQ(reinterpret_cast<const int32_t*>(results->host())[turn], 2);
  }
}

// Every number comes back; between two neighbours the middle goes to the even one, and what lies
// beside it to the nearer one. Behind the largest number lies the infinite one.
TEST(Float16, RoundsToNearestEven) {
  for (uint16_t bits = 0; bits < 0x7C00; ++bits) {
    const float low = float16_to_float(bits);
    const float high = bits == 0x7BFF ? 65536.0F : float16_to_float(bits + 1);
    const float middle = low + (high - low) / 2;
    ASSERT_EQ(float_to_float16(low), bits);
    ASSERT_EQ(float_to_float16(-low), bits | 0x8000);
    ASSERT_EQ(float_to_float16(middle), bits + bits % 2);
    ASSERT_EQ(float_to_float16(std::nextafter(middle, low)), bits);
    ASSERT_EQ(float_to_float16(std::nextafter(middle, high)), bits + 1);
  }
  EXPECT_EQ(float16_to_float(0x0001), 0x1p-24F);
  EXPECT_EQ(float16_to_float(0x3C00), 1.0F);
  EXPECT_EQ(float16_to_float(0x7BFF), 65504.0F);
  for (const float beyond : {65520.0F, 1e30F, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(float_to_float16(-beyond), 0xFC00);
  }
  EXPECT_EQ(float16_to_float(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(float16_to_float(float_to_float16(std::nanf("")))));
}

}  // namespace
}  // namespace lckv
