// Matrix products against double precision, and the identity that reproducible mode promises.
#include <dnnl.h>
#include <omp.h>

#include "tests/kernels/backends.h"

namespace lckv {
namespace {

struct Case {
  int64_t rows;
  int64_t n;
  int64_t k;
};

class Product : public testing::TestWithParam<Backend> {};
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
    std::vector<float> y = before;
    ops->matmul(*packed, x.data(), shape.rows, y.data(), bias.data(), true);
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

class Reproducible : public testing::TestWithParam<Backend> {};
INSTANTIATE_TEST_SUITE_P(All, Reproducible, testing::ValuesIn(reproducible_backends()),
                         backend_name);

// How many of the row counts give row 0 the bytes that it has alone.
int identical_counts(Ops& ops, int64_t n, int64_t k, const std::vector<int64_t>& counts) {
  Random random(11);
  const auto w = random.floats(n * k);
  const auto packed = ops.pack({{WeightSource{w.data(), DType::kFloat32, n, k}}});
  const auto x = random.floats(counts.back() * k);
  std::vector<float> alone(n);
  ops.matmul(*packed, x.data(), 1, alone.data(), nullptr, false);
  int identical = 0;
  for (const int64_t rows : counts) {
    std::vector<float> y(rows * n);
    ops.matmul(*packed, x.data(), rows, y.data(), nullptr, false);
    if (same_bytes(y.data(), alone.data(), n)) ++identical;
  }
  return identical;
}

const std::vector<int64_t> kCounts = {1, 2, 3, 5, 6, 7, 8, 12, 15, 16, 17, 31, 33, 64, 100};

TEST_P(Reproducible, ARowIsTheSameInAnyBatch) {
  const auto ops = GetParam().open();
  EXPECT_EQ(identical_counts(*ops, 200, 2048, kCounts), static_cast<int>(kCounts.size()));
}

// A general product picks its blocking by the number of rows: what the promise above is not.
TEST(PlainProduct, DependsOnTheNumberOfRows) {
  constexpr int64_t kN = 64;
  constexpr int64_t kK = 2048;
  Random random(12);
  const auto w = random.floats(kN * kK);
  const auto x = random.floats(kCounts.back() * kK);
  const auto multiply = [&](int64_t rows) {
    std::vector<float> y(rows * kN);
    EXPECT_EQ(
        dnnl_sgemm('N', 'T', rows, kN, kK, 1.0F, x.data(), kK, w.data(), kK, 0.0F, y.data(), kN),
        dnnl_success);
    return y;
  };
  const std::vector<float> alone = multiply(1);
  int identical = 0;
  for (const int64_t rows : kCounts) {
    if (same_bytes(multiply(rows).data(), alone.data(), kN)) ++identical;
  }
  EXPECT_LT(identical, static_cast<int>(kCounts.size()));
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
  std::vector<float> straight(kRows * kN);
  std::vector<float> other(kRows * kN);
  const WeightSource source{w.data(), DType::kFloat32, kN, kK};
  const auto two = GetParam().open(2);
  two->matmul(*two->pack({{source}}), x.data(), kRows, straight.data(), nullptr, false);
  const auto one = GetParam().open(1);
  one->matmul(*one->pack({{source}}), shuffled.data(), kRows, other.data(), nullptr, false);
  for (int32_t i = 0; i < kRows; ++i) {
    EXPECT_TRUE(same_bytes(&straight[order[i] * kN], &other[i * kN], kN)) << "row " << order[i];
  }
  omp_set_num_threads(omp_get_num_procs());
}

}  // namespace
}  // namespace lckv
