// Each of our own product's kernels by itself, those of other machines included: matrix tiles run
// in an emulation of the instruction, and in hardware where this process may use it.
#include <dnnl.h>

#include <array>

#include "kernels/cpu/amx_permission.h"
#include "kernels/cpu/tile_product.h"
#include "tests/kernels/backends.h"

namespace lckv {
namespace {

// Eight tiles with the meaning of TILELOADD, TILESTORED and TDPBF16PS (Intel SDM): even and odd
// elements of k are summed apart with fused steps, then together, then into the tile; subnormals
// are zeros.
class EmulatedTiles {
 public:
  template <int kTile>
  void clear() {
    tiles_[kTile] = {};
  }
  template <int kTile>
  void load(const std::byte* from, int64_t stride) {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(&tiles_[kTile][64 * row], from + row * stride, 64);
    }
  }
  template <int kTile>
  void store(std::byte* to, int64_t stride) const {
    for (int row = 0; row < 16; ++row) {
      std::memcpy(to + row * stride, &tiles_[kTile][64 * row], 64);
    }
  }
  template <int kSums, int kRows, int kWeights>
  void dot() {
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        float parts[2] = {};
        for (int k = 0; k < 16; ++k) {
          for (int odd = 0; odd < 2; ++odd) {
            parts[odd] = normal(std::fma(element<kRows>(m, 2 * k + odd),
                                         element<kWeights>(k, 2 * n + odd), parts[odd]));
          }
        }
        float sum;
        std::memcpy(&sum, &tiles_[kSums][64 * m + 4 * n], 4);
        sum = normal(normal(sum) + normal(parts[0] + parts[1]));
        std::memcpy(&tiles_[kSums][64 * m + 4 * n], &sum, 4);
      }
    }
  }

 private:
  static float normal(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0F, value) : value;
  }
  template <int kTile>
  float element(int row, int column) const {
    uint16_t bits;
    std::memcpy(&bits, &tiles_[kTile][64 * row + 2 * column], 2);
    return normal(bfloat16_to_float(bits));
  }

  std::array<std::array<std::byte, 1024>, 8> tiles_ = {};
};

void multiply_emulated(const BlockProduct& block) {
  EmulatedTiles tiles;
  multiply_tile_block(tiles, block);
}

RowKernels emulated_tile_kernels() {
  static constexpr BlockKernel kByRows[] = {multiply_emulated};
  return tile_row_kernels("emulated tiles", kByRows);
}

bool always() { return true; }

struct Kernels {
  const char* name;
  RowKernels (*open)();
  bool (*runs_here)();
};

class RowKernelsTest : public testing::TestWithParam<Kernels> {
 protected:
  void SetUp() override {
    if (!GetParam().runs_here()) GTEST_SKIP() << GetParam().name << " does not run here";
  }
};

INSTANTIATE_TEST_SUITE_P(All, RowKernelsTest,
                         testing::Values(Kernels{"float32", float32_row_kernels, always},
                                         Kernels{"wide", wide_bfloat16_row_kernels, always},
                                         Kernels{"avx512", avx512_bfloat16_row_kernels,
                                                 has_avx512_bf16},
                                         Kernels{"emulated_tiles", emulated_tile_kernels, always},
                                         Kernels{"amx", amx_bfloat16_row_kernels, ask_for_amx}),
                         [](const auto& info) { return info.param.name; });

// One weight matrix and all that a product with it needs.
class Problem {
 public:
  Problem(const RowKernels& kernels, int64_t n, int64_t k, uint64_t seed)
      : kernels_(kernels), n_(n), k_(k), random_(seed), weights_(random_.floats(n * k)) {
    panels_.resize(panel_bytes(kernels.dtype, n, k) / 64 + 1);
    const WeightSource source{weights_.data(), DType::kFloat32, n, k};
    pack_panels({&source, 1}, kernels.dtype, bytes(panels_));
  }

  std::vector<float> rows(int64_t count) { return random_.floats(count * k_); }

  std::vector<float> multiply(const std::vector<float>& x) const {
    const auto count = static_cast<int64_t>(x.size()) / k_;
    const ProductShape shape(kernels_, count, n_, k_);
    std::vector<Line> input(shape.x_values() * dtype_bytes(kernels_.dtype) / 64 + 1);
    lay_out_rows(shape, kernels_.dtype, x.data(), k_, 0, shape.padded_rows, bytes(input));
    std::vector<Line> sums(shape.sums_floats() * 4 / 64);
    std::vector<float> y(count * n_);
    multiply_panels(kernels_, shape, {.panels = bytes(panels_), .x = bytes(input), .y = y.data()},
                    0, num_panels(n_), reinterpret_cast<float*>(bytes(sums)));
    return y;
  }

  void expect_product(const std::vector<float>& x, const std::vector<float>& y) const {
    const DType dtype = kernels_.dtype;
    for (size_t row = 0; row < x.size() / k_; ++row) {
      for (int64_t n = 0; n < n_; ++n) {
        double sum = 0.0;
        double size = 0.0;
        for (int64_t k = 0; k < k_; ++k) {
          const double term = static_cast<double>(rounded(x[row * k_ + k], dtype)) *
                              rounded(weights_[n * k_ + k], dtype);
          sum += term;
          size += std::abs(term);
        }
        ASSERT_NEAR(y[row * n_ + n], sum, static_cast<double>(k_ + 2) * 0x1p-24 * size)
            << "row " << row << " n " << n << " of " << n_ << " k " << k_;
      }
    }
  }

 private:
  struct alignas(64) Line {
    std::byte data[64];
  };
  static std::byte* bytes(const std::vector<Line>& lines) {
    return const_cast<std::byte*>(lines.data()->data);
  }

  const RowKernels kernels_;
  const int64_t n_;
  const int64_t k_;
  Random random_;
  const std::vector<float> weights_;
  std::vector<Line> panels_;
};

TEST_P(RowKernelsTest, MatchesDoublePrecisionWithAnyTail) {
  uint64_t seed = 1;
  for (const int64_t k : {1, 2, 31, 32, 33, 129, 300, 520}) {
    for (const int64_t n : {1, 63, 64, 65, 130}) {
      Problem problem(GetParam().open(), n, k, ++seed);
      for (const int64_t rows : {1, 2, 7, 15, 16, 17, 33}) {
        const auto x = problem.rows(rows);
        problem.expect_product(x, problem.multiply(x));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(RowKernelsTest, ARowIsTheSameInAnyBatchAtAnyPlace) {
  constexpr int64_t kN = 70;
  constexpr int64_t kK = 288;  // two chunks
  Problem problem(GetParam().open(), kN, kK, 3);
  const auto x = problem.rows(540);  // more rows than are walked together
  const auto all = problem.multiply(x);
  for (const int64_t count : {1, 2, 5, 6, 7, 13, 16, 17, 32, 65}) {
    for (const int64_t first : {0, 1, 11, 470}) {
      const std::vector<float> some(x.begin() + first * kK, x.begin() + (first + count) * kK);
      const auto y = problem.multiply(some);
      ASSERT_TRUE(same_bytes(y.data(), &all[first * kN], count * kN))
          << count << " rows from " << first;
    }
  }
}

TEST_P(RowKernelsTest, NeighboursThatAreNotNumbersStayAlone) {
  constexpr int64_t kN = 64;
  constexpr int64_t kK = 96;
  Problem problem(GetParam().open(), kN, kK, 4);
  auto x = problem.rows(20);
  const auto clean = problem.multiply(x);
  std::fill_n(x.begin() + 7 * kK, kK, std::nanf(""));
  const auto y = problem.multiply(x);
  EXPECT_TRUE(std::isnan(y[7 * kN]));
  EXPECT_TRUE(same_bytes(y.data(), clean.data(), 7 * kN));
  EXPECT_TRUE(same_bytes(&y[8 * kN], &clean[8 * kN], 12 * kN));
}

// A general product picks its blocking by the number of rows: what the promise of our own product
// is not.
TEST(PlainProduct, DependsOnTheNumberOfRows) {
  constexpr int64_t kN = 64;
  constexpr int64_t kK = 2048;
  constexpr int64_t kCounts[] = {1, 2, 3, 5, 6, 7, 8, 12, 15, 16, 17, 31, 33, 64, 100};
  Random random(12);
  const auto w = random.floats(kN * kK);
  const auto x = random.floats(100 * kK);
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
  EXPECT_LT(identical, static_cast<int>(std::size(kCounts)));
}

TEST(Tiles, HardwareGivesTheBytesOfTheEmulation) {
  if (!ask_for_amx()) GTEST_SKIP() << "no matrix tiles for this process";
  Problem emulated(emulated_tile_kernels(), 130, 1000, 5);
  Problem hardware(amx_bfloat16_row_kernels(), 130, 1000, 5);
  const auto x = emulated.rows(40);
  const auto expected = emulated.multiply(x);
  EXPECT_TRUE(same_bytes(hardware.multiply(x).data(), expected.data(), expected.size()));
}

}  // namespace
}  // namespace lckv
