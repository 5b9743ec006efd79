// The draw of a token and log-probabilities.
#include <map>
#include <set>

#include "kernels/philox.h"
#include "kernels/sampling.h"
#include "tests/kernels/backends.h"

namespace lckv {
namespace {

// Known answers of the authors' Random123 distribution (kat_vectors).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox_4x32_10({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox_4x32_10({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox_4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

std::map<int32_t, int> draw(std::vector<float> logits, SampleArgs args, int count) {
  std::map<int32_t, int> drawn;
  args.logits = logits.data();
  args.vocabulary = static_cast<int32_t>(logits.size());
  for (int i = 0; i < count; ++i) {
    args.position = static_cast<uint32_t>(i);
    ++drawn[draw_token(args)];
  }
  return drawn;
}

std::set<int32_t> support(const std::vector<float>& logits, const SampleArgs& args) {
  std::set<int32_t> ids;
  for (const auto& [id, count] : draw(logits, args, 4000)) ids.insert(id);
  return ids;
}

TEST(Draw, GreedyTakesTheLowestOfEqualMaxima) {
  EXPECT_EQ(draw({0.0F, 3.0F, 3.0F, -1.0F}, {.temperature = 0.0F}, 5),
            (std::map<int32_t, int>{{1, 5}}));
}

TEST(Draw, FollowsTheSoftmaxAtItsTemperature) {
  const std::vector<float> logits = {0.5F, -1.0F, 2.0F, 0.0F, 1.0F};
  constexpr int kDraws = 20000;
  for (const float temperature : {0.5F, 1.0F, 2.0F}) {
    const auto drawn = draw(logits, {.temperature = temperature, .seed = 42}, kDraws);
    double sum = 0.0;
    for (const float logit : logits) sum += std::exp(logit / temperature);
    double chi_squared = 0.0;
    for (int32_t id = 0; id < 5; ++id) {
      const double expected = kDraws * std::exp(logits[id] / temperature) / sum;
      const int count = drawn.contains(id) ? drawn.at(id) : 0;
      chi_squared += std::pow(count - expected, 2.0) / expected;
    }
    EXPECT_LT(chi_squared, 18.47) << "4 degrees of freedom, p = 0.001";
  }
}

TEST(Draw, TruncationsKeepTheRightTokens) {
  const std::vector<float> logits = {std::log(0.4F), std::log(0.1F), std::log(0.3F),
                                     std::log(0.15F), std::log(0.05F)};
  EXPECT_EQ(support(logits, {}), (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(support(logits, {.top_k = 2}), (std::set<int32_t>{0, 2}));
  EXPECT_EQ(support(logits, {.top_p = 0.65F}), (std::set<int32_t>{0, 2}));
  EXPECT_EQ(support(logits, {.top_p = 0.75F}), (std::set<int32_t>{0, 2, 3}));
  EXPECT_EQ(support(logits, {.min_p = 0.3F}), (std::set<int32_t>{0, 2, 3}));
  EXPECT_EQ(support(logits, {.top_p = 1e-6F}), (std::set<int32_t>{0}));
  // Top-p is measured within what top-k left.
  EXPECT_EQ(support(logits, {.top_k = 3, .top_p = 0.8F}), (std::set<int32_t>{0, 2}));
}

TEST(Draw, DependsOnSeedChoiceAndPositionAlone) {
  Random random(5);
  const auto logits = random.floats(50);
  std::set<int32_t> by_seed;
  std::set<int32_t> by_choice;
  for (uint32_t i = 0; i < 50; ++i) {
    by_seed.insert(draw(logits, {.seed = i}, 1).begin()->first);
    by_choice.insert(draw(logits, {.choice = i}, 1).begin()->first);
  }
  EXPECT_GT(by_seed.size(), 10U);
  EXPECT_GT(by_choice.size(), 10U);
  EXPECT_EQ(draw(logits, {.seed = 9}, 100), draw(logits, {.seed = 9}, 100));
}

TEST(Logprobs, AreThoseOfTheSoftmaxInOrder) {
  const std::vector<float> logits = {1.0F, 3.0F, 2.0F, 3.0F, -200.0F};
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  std::vector<float> own(2);
  std::vector<TopEntry> top(5);
  row_logprobs(logits.data(), 5, {{2, 4}}, own.data(), 5, top.data());
  EXPECT_NEAR(own[0], 2.0 - std::log(sum), 1e-6);
  EXPECT_NEAR(own[1], -200.0 - std::log(sum), 1e-4);
  std::vector<int32_t> order;
  for (const TopEntry& entry : top) {
    order.push_back(entry.id);
    EXPECT_NEAR(entry.logprob, logits[entry.id] - std::log(sum), 1e-4);
  }
  EXPECT_EQ(order, (std::vector<int32_t>{1, 3, 2, 0, 4}));
}

}  // namespace
}  // namespace lckv
