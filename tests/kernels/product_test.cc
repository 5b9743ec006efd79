// Matrix products against double precision, and the identity that reproducible mode promises.
#include "tests/kernels/backends.h"

namespace lckv {
namespace {

struct Case {
  int64_t rows;
  int64_t n;
  int64_t k;
};

class Product : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(All, Product, testing::ValuesIn(all_backends()), backend_name);

// |error| <= (k + 2) * eps32 * sum |x w|, plus one rounding of either input to the compute dtype,
// which the naive version shares.
TEST_P(Product, MatchesDoublePrecision) {
  const Backend& backend = GetParam();
  const auto ops = backend.open();
  Random random(7);
  for (const Case& shape : {Case{1, 64, 32},
                            {2, 100, 64},
                            {15, 65, 96},
                            {16, 160, 64},
                            {17, 63, 128},
                            {33, 200, 256},
                            {1, 1, 2},
                            {70, 130, 64}}) {
    const auto w = random.floats(shape.n * shape.k);
    const auto x = random.floats(shape.rows * shape.k);
    const auto bias = random.floats(shape.n);
    const auto before = random.floats(shape.rows * shape.n);
    // Two sources, to see that they are stacked.
    const int64_t first = shape.n / 2;
    std::vector<WeightSource> sources;
    if (first > 0) sources.push_back({w.data(), DType::kFloat32, first, shape.k});
    sources.push_back({w.data() + first * shape.k, DType::kFloat32, shape.n - first, shape.k});
    const auto packed = ops->pack(sources);
    ASSERT_EQ(packed->n(), shape.n);
    const auto sums = on_device(*ops, before);
    ops->matmul(*packed, operand(*ops, x, shape.k)->data(), shape.rows, sums->floats(),
                on_device(*ops, bias)->floats(), true);
    const std::vector<float> y = from_device(*ops, *sums);
    for (int64_t row = 0; row < shape.rows; ++row) {
      for (int64_t n = 0; n < shape.n; ++n) {
        double sum = before[row * shape.n + n] + static_cast<double>(bias[n]);
        double size = std::abs(sum);
        for (int64_t k = 0; k < shape.k; ++k) {
          const double product = static_cast<double>(rounded(x[row * shape.k + k], backend.dtype)) *
                                 rounded(w[n * shape.k + k], backend.dtype);
          sum += product;
          size += std::abs(product);
        }
        ASSERT_NEAR(y[row * shape.n + n], sum, static_cast<double>(shape.k + 4) * 0x1p-23 * size)
            << "rows " << shape.rows << " n " << shape.n << " k " << shape.k;
      }
    }
  }
}

// y of one row of ones, over the matrix's columns.
std::vector<float> product_of(Ops& ops, const PackedWeight& weight) {
  const auto y = ops.allocate(weight.n() * sizeof(float));
  const std::vector<float> ones(weight.k(), 1.0F);
  ops.matmul(weight, operand(ops, ones, weight.k())->data(), 1, y->floats(), nullptr, false);
  return from_device(ops, *y);
}

// Weights of host memory, taking turns in slots, are those that stay on the device: also where the
// slot that is filled was read just before, and where several matrices share it.
TEST_P(Product, FetchedWeightsAreResidentOnes) {
  const auto ops = GetParam().open();
  Random random(17);
  constexpr int64_t kK = 40;
  const std::vector<int64_t> sizes = {65, 3, 130};
  std::vector<std::unique_ptr<PackedWeight>> resident;
  std::vector<std::unique_ptr<PackedWeight>> offloaded;
  size_t bytes = 0;
  for (int layer = 0; layer < 4; ++layer) {
    for (const int64_t n : sizes) {
      const auto w = random.floats(n * kK);
      const WeightSource source{w.data(), DType::kFloat32, n, kK};
      resident.push_back(ops->pack({{source}}));
      offloaded.push_back(ops->pack_on_host({{source}}));
      if (layer == 0) bytes += offloaded.back()->bytes();
    }
  }
  const std::vector<std::unique_ptr<WeightSlot>> slots = [&] {
    std::vector<std::unique_ptr<WeightSlot>> two;
    for (int i = 0; i < 2; ++i) two.push_back(ops->allocate_weight_slot(bytes));
    return two;
  }();
  const auto fetch = [&](size_t layer, WeightSlot& slot) {
    std::vector<PackedWeight*> weights;
    for (size_t i = 0; i < sizes.size(); ++i) {
      weights.push_back(offloaded[layer * sizes.size() + i].get());
    }
    ops->fetch(weights, slot);
  };
  const std::vector<size_t> walk = {0, 1, 2, 3, 0, 2, 1, 3};
  fetch(walk[0], *slots[0]);
  for (size_t at = 0; at < walk.size(); ++at) {
    if (at + 1 < walk.size()) fetch(walk[at + 1], *slots[(at + 1) % 2]);
    for (size_t i = 0; i < sizes.size(); ++i) {
      const size_t weight = walk[at] * sizes.size() + i;
      EXPECT_EQ(product_of(*ops, *offloaded[weight]), product_of(*ops, *resident[weight]))
          << "layer " << walk[at] << " matrix " << i;
    }
  }
}

class Reproducible : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(All, Reproducible, testing::ValuesIn(reproducible_backends()),
                         backend_name);

std::vector<float> multiply(Ops& ops, const PackedWeight& weight, const std::vector<float>& x) {
  const int64_t rows = static_cast<int64_t>(x.size()) / weight.k();
  const auto y = ops.allocate(rows * weight.n() * sizeof(float));
  ops.matmul(weight, operand(ops, x, weight.k())->data(), rows, y->floats(), nullptr, false);
  return from_device(ops, *y);
}

// How many of the row counts give row 0 the bytes that it has alone.
int identical_counts(Ops& ops, int64_t n, int64_t k, const std::vector<int64_t>& counts) {
  Random random(11);
  const auto w = random.floats(n * k);
  const auto packed = ops.pack({{WeightSource{w.data(), DType::kFloat32, n, k}}});
  const auto x = random.floats(counts.back() * k);
  const auto first = [&](int64_t rows) {
    return multiply(ops, *packed, {x.begin(), x.begin() + rows * k});
  };
  const std::vector<float> alone = first(1);
  int identical = 0;
  for (const int64_t rows : counts) {
    const std::vector<float> y = first(rows);
    if (same_bytes(y.data(), alone.data(), n)) ++identical;
  }
  return identical;
}

const std::vector<int64_t> kCounts = {1, 2, 3, 5, 6, 7, 8, 12, 15, 16, 17, 31, 33, 64, 100};

TEST_P(Reproducible, ARowIsTheSameInAnyBatch) {
  const auto ops = GetParam().open();
  EXPECT_EQ(identical_counts(*ops, 200, 2048, kCounts), static_cast<int>(kCounts.size()));
}

TEST_P(Reproducible, OrderAndThreadsDoNotMatter) {
  constexpr int64_t kRows = 37;
  constexpr int64_t kN = 150;
  constexpr int64_t kK = 512;
  Random random(13);
  const auto w = random.floats(kN * kK);
  const auto x = random.floats(kRows * kK);
  std::vector<int32_t> order(kRows);
  for (int32_t i = 0; i < kRows; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random.engine());
  std::vector<float> shuffled;
  for (const int32_t row : order) {
    shuffled.insert(shuffled.end(), x.begin() + row * kK, x.begin() + (row + 1) * kK);
  }
  const WeightSource source{w.data(), DType::kFloat32, kN, kK};
  const auto two = GetParam().open(2);
  const std::vector<float> straight = multiply(*two, *two->pack({{source}}), x);
  const auto one = GetParam().open(1);
  const std::vector<float> other = multiply(*one, *one->pack({{source}}), shuffled);
  for (int32_t i = 0; i < kRows; ++i) {
    EXPECT_TRUE(same_bytes(&straight[order[i] * kN], &other[i * kN], kN)) << "row " << order[i];
  }
}

}  // namespace
}  // namespace lckv
