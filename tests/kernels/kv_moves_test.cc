// Keys and values on their way: from products into slots and staged rows, between these, and to the
// host.
#include <cmath>

#include "tests/kernels/backends.h"

namespace lckv {
namespace {

class KvMoves : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(All, KvMoves, testing::ValuesIn(all_backends()), backend_name);

// Queries and keys turned, and keys and values put away, by one call as by several; what goes
// nowhere changes nothing.
TEST_P(KvMoves, TurnsAndPutsAwayAtOnce) {
  const auto ops = GetParam().open();
  constexpr int32_t kHeads = 6;
  constexpr int32_t kRows = 4;
  const std::vector<int32_t> positions = {3, 49, 0, 7};
  const std::vector<int32_t> blocks = {1, 0, -1, 1};
  const std::vector<int32_t> slots = {2, 3, 0, 0};
  const std::vector<int32_t> ids = {2, -1, 0, 4};
  Random random(9);
  for (const int32_t head_dim : {16, 80}) {
    const auto table = ops->rope_table({.head_dim = head_dim}, 50);
    KvLayout layout{
        .slots_per_block = 4, .kv_heads = 2, .head_dim = head_dim, .dtype = ops->dtype()};
    const int64_t width = int64_t{2} * head_dim;
    const size_t row_bytes = width * dtype_bytes(layout.dtype);
    layout.block_bytes = static_cast<int64_t>(8 * row_bytes);
    const auto q = random.floats(kRows * kHeads * head_dim);
    const auto kv = random.floats(kRows * 2 * width);
    struct Found {
      std::vector<float> q;
      std::vector<uint8_t> kv;
      bool operator==(const Found&) const = default;
    };
    const auto run = [&](bool is_staged, bool has_q, const auto& call) {
      const auto memory = nan_on_device(*ops, 16 * row_bytes);
      const auto queries = on_device(*ops, q);
      const auto given = on_device(*ops, kv);
      NewKv rows{.q = has_q ? queries->floats() : nullptr,
                 .num_heads = kHeads,
                 .kv = given->floats(),
                 .layout = layout};
      rows.layout.base = memory->data();
      if (is_staged) {
        rows.staged_rows = ids;
        rows.staged = {memory->data(), memory->data() + 8 * row_bytes};
      } else {
        rows.blocks = blocks;
        rows.slots = slots;
      }
      call(rows);
      return Found{from_device(*ops, *queries), from_device<uint8_t>(*ops, *memory)};
    };
    for (const bool is_staged : {false, true}) {
      for (const bool has_q : {false, true}) {
        const Found at_once = run(
            is_staged, has_q, [&](const NewKv& rows) { ops->rope_kv(rows, positions, *table); });
        const Found by_steps = run(is_staged, has_q, [&](const NewKv& rows) {
          ops->Ops::rope_kv(rows, positions, *table);
        });
        EXPECT_EQ(at_once.q, by_steps.q) << head_dim << is_staged << has_q;
        EXPECT_EQ(at_once.kv, by_steps.kv) << head_dim << is_staged << has_q;
        EXPECT_EQ(at_once.q == q, !has_q);
      }
    }
  }
}

TEST_P(KvMoves, ComparesAndCopiesStagedRows) {
  const auto ops = GetParam().open();
  const KvLayout layout{.kv_heads = 2, .head_dim = 16, .dtype = ops->dtype()};
  constexpr int64_t kWidth = 32;
  Random random(6);
  const auto k = random.floats(3 * kWidth);
  const auto v = random.floats(3 * kWidth);
  const size_t bytes = 4 * kWidth * dtype_bytes(layout.dtype);
  const auto fresh_k = ops->allocate(bytes);
  const auto fresh_v = ops->allocate(bytes);
  const auto read_k = ops->allocate(bytes);
  const auto read_v = ops->allocate(bytes);
  const KvRows fresh{fresh_k->data(), fresh_v->data()};
  const KvRows read{read_k->data(), read_v->data()};
  const std::vector<int32_t> ids = {2, 0, 3};
  ops->stage_kv(on_device(*ops, k)->floats(), on_device(*ops, v)->floats(), kWidth, layout, ids,
                fresh);
  ops->copy_kv(layout, {{2, 3}}, fresh, read);
  ops->zero_kv(layout, {{0}}, read);
  const auto distances = ops->allocate(sizeof(KvDistance) * ids.size());
  ops->compare_kv(layout, ids, fresh, read, reinterpret_cast<KvDistance*>(distances->data()));
  const auto distance = from_device<KvDistance>(*ops, *distances);
  EXPECT_EQ(distance[0].differs, 0.0F);
  EXPECT_GE(distance[1].differs, 1.0F);
  EXPECT_EQ(distance[2].differs, 0.0F);
  EXPECT_EQ(distance[0].difference_squared, 0.0F);
  double norm = 0.0;
  for (int64_t i = kWidth; i < 2 * kWidth; ++i) {
    norm += std::pow(rounded(k[i], layout.dtype), 2.0) + std::pow(rounded(v[i], layout.dtype), 2.0);
  }
  EXPECT_NEAR(distance[1].difference_squared, norm, 1e-5 * norm);
  EXPECT_NEAR(distance[1].norm_squared, norm, 1e-5 * norm);
}

// A slot holds the same bytes whether its row came from floats or was staged before.
TEST_P(KvMoves, CommitsWhatWasStaged) {
  const auto ops = GetParam().open();
  constexpr int64_t kWidth = 48;
  KvLayout layout{.slots_per_block = 4, .kv_heads = 3, .head_dim = 16, .dtype = ops->dtype()};
  const size_t value_bytes = dtype_bytes(layout.dtype);
  layout.block_bytes = static_cast<int64_t>(2 * kWidth * 4 * value_bytes) + 32;
  Random random(8);
  const auto k = on_device(*ops, random.floats(3 * (kWidth + 4)));
  const auto v = on_device(*ops, random.floats(3 * (kWidth + 4)));
  const std::vector<int32_t> blocks = {1, 0, 1};
  const std::vector<int32_t> slots = {3, 2, 0};
  const std::vector<int32_t> ids = {4, 1, 0};
  const auto staged_k = nan_on_device(*ops, 5 * kWidth * value_bytes);
  const auto staged_v = nan_on_device(*ops, 5 * kWidth * value_bytes);
  const KvRows staged{staged_k->data(), staged_v->data()};
  const auto appended = nan_on_device(*ops, 2 * layout.block_bytes);
  const auto committed = nan_on_device(*ops, 2 * layout.block_bytes);
  layout.base = appended->data();
  ops->append_kv(k->floats(), v->floats(), kWidth + 4, layout, blocks, slots);
  ops->stage_kv(k->floats(), v->floats(), kWidth + 4, layout, ids, staged);
  layout.base = committed->data();
  ops->commit_kv(staged, ids, layout, blocks, slots);
  const std::vector<float> expected = from_device(*ops, *appended);
  EXPECT_TRUE(same_bytes(from_device(*ops, *committed).data(), expected.data(), expected.size()));
  // Key of the first row, second head: block 1, slot 3.
  std::vector<std::byte> bytes(appended->bytes());
  ops->copy(appended->data(), bytes.data(), bytes.size());
  const std::byte* const key = bytes.data() + layout.block_bytes + (4 + 3) * 16 * value_bytes;
  const std::vector<float> rows = from_device(*ops, *k);
  for (int32_t i = 0; i < 16; ++i) {
    EXPECT_EQ(weight_value({.data = key, .dtype = layout.dtype}, i),
              rounded(rows[16 + i], layout.dtype));
  }
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(float_to_bfloat16(1.0F), 0x3F80);
  EXPECT_EQ(float_to_bfloat16(1.00390625F), 0x3F80);  // halfway, even below
  EXPECT_EQ(float_to_bfloat16(1.01171875F), 0x3F82);  // halfway, even above
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::infinity()), 0x7F80);
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(std::nanf("")))));
}

TEST_P(KvMoves, CopiesBlocksToTheHostAndBackInOrder) {
  const auto ops = GetParam().open();
  constexpr size_t kBytes = 3 * sizeof(float);
  const auto first = on_device(*ops, std::vector<float>{1, 2, 3});
  const auto second = on_device(*ops, std::vector<float>{4, 5, 6});
  const auto host = ops->allocate_host(2 * kBytes);
  ops->copy_block(first->data(), host->data() + kBytes, kBytes);
  ops->copy_block(second->data(), host->data(), kBytes);
  ops->copy_block(host->data() + kBytes, second->data(), kBytes);
  ops->copy_block(host->data(), first->data(), kBytes);
  EXPECT_EQ(from_device(*ops, *first), (std::vector<float>{4, 5, 6}));
  EXPECT_EQ(from_device(*ops, *second), (std::vector<float>{1, 2, 3}));
}

}  // namespace
}  // namespace lckv
