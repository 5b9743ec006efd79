// The draw of a token and log-probabilities: on the host by themselves, then every backend's
// against the host's.
#include <algorithm>
#include <limits>
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
  float own = 0.0F;
  std::vector<TopEntry> top(5);
  row_logprobs({.logits = logits.data(), .token = {.id = 2}, .own = &own}, 5);
  EXPECT_NEAR(own, 2.0 - std::log(sum), 1e-6);
  row_logprobs(
      {.logits = logits.data(), .token = {.id = 4}, .own = &own, .num_top = 5, .top = top.data()},
      5);
  EXPECT_NEAR(own, -200.0 - std::log(sum), 1e-4);
  std::vector<int32_t> order;
  for (const TopEntry& entry : top) {
    order.push_back(entry.id);
    EXPECT_NEAR(entry.logprob, logits[entry.id] - std::log(sum), 1e-4);
  }
  EXPECT_EQ(order, (std::vector<int32_t>{1, 3, 2, 0, 4}));
}

class Sampling : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(All, Sampling, testing::ValuesIn(all_backends()), backend_name);

// Logits with equal ones among them, both zeros, infinities and what is not a number.
std::vector<float> mixed_logits(Random& random, int32_t vocabulary) {
  auto logits = random.floats(vocabulary, 3.0F);
  for (int32_t i = 0; i < vocabulary / 4; ++i) {
    logits[random.below(vocabulary)] = std::round(logits[random.below(vocabulary)]);
  }
  if (vocabulary < 8) return logits;
  logits[random.below(vocabulary)] = -0.0F;
  logits[random.below(vocabulary)] = -std::numeric_limits<float>::infinity();
  logits[random.below(vocabulary)] = std::nanf("");
  return logits;
}

std::vector<int32_t> sample(Ops& ops, std::vector<SampleArgs> rows) {
  const auto drawn = on_device(ops, std::vector<int32_t>(rows.size(), -1));
  auto* id = reinterpret_cast<int32_t*>(drawn->data());
  for (SampleArgs& row : rows) row.drawn = id++;
  ops.sample(rows);
  return from_device<int32_t>(ops, *drawn);
}

struct Logged {
  float own = 0.0F;
  std::vector<TopEntry> top;  // most likely first, equal ones by id
};

void put_in_order(std::vector<TopEntry>& top) {
  std::sort(top.begin(), top.end(), [](const TopEntry& left, const TopEntry& right) {
    return left.logprob != right.logprob ? left.logprob > right.logprob : left.id < right.id;
  });
}

// The even ones of the rows' ids are known, the others lie on the device.
std::vector<Logged> find_logprobs(Ops& ops, std::vector<LogprobArgs> rows, int32_t vocabulary) {
  std::vector<int32_t> ids;
  size_t num_top = 0;
  for (const LogprobArgs& row : rows) {
    ids.push_back(row.token.id);
    num_top += row.num_top;
  }
  const auto drawn = on_device(ops, ids);
  const auto own = nan_on_device(ops, rows.size() * sizeof(float));
  const auto top = nan_on_device(ops, num_top * sizeof(TopEntry));
  auto* next = reinterpret_cast<TopEntry*>(top->data());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i % 2 == 1) rows[i].token = {.drawn = reinterpret_cast<int32_t*>(drawn->data()) + i};
    rows[i].own = own->floats() + i;
    rows[i].top = next;
    next += rows[i].num_top;
  }
  ops.logprobs(rows, vocabulary);
  std::vector<Logged> found;
  const auto all = from_device<TopEntry>(ops, *top);
  auto entry = all.begin();
  for (const float value : from_device(ops, *own)) {
    const auto end = entry + rows[found.size()].num_top;
    put_in_order(found.emplace_back(Logged{.own = value, .top = {entry, end}}).top);
    entry = end;
  }
  return found;
}

TEST_P(Sampling, DrawsTheTokensOfTheHost) {
  const auto ops = GetParam().open();
  Random random(21);
  for (const int32_t vocabulary : {1, 2, 7, 700, 5000}) {
    std::vector<std::vector<float>> logits;
    std::vector<std::unique_ptr<DeviceBuffer>> on_devices;
    std::vector<SampleArgs> rows;
    for (uint32_t i = 0; i < 40; ++i) {
      logits.push_back(mixed_logits(random, vocabulary));
      SampleArgs args{.vocabulary = vocabulary,
                      .temperature = i % 8 == 0 ? 0.0F : 0.5F + 0.1F * static_cast<float>(i % 5),
                      .seed = random.engine()(),
                      .choice = i % 3,
                      .position = i};
      if (i % 2 == 0) args.top_k = 1 + static_cast<uint32_t>(random.below(vocabulary + 3));
      if (i % 3 == 0) args.top_p = 0.01F + 0.0098F * static_cast<float>(random.below(100));
      if (i % 5 == 0) args.min_p = 0.01F * static_cast<float>(random.below(30));
      on_devices.push_back(on_device(*ops, logits.back()));
      args.logits = on_devices.back()->floats();
      rows.push_back(args);
    }
    const auto drawn = sample(*ops, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      SampleArgs& args = rows[i];
      args.logits = logits[i].data();
      ASSERT_EQ(drawn[i], draw_token(args))
          << "vocabulary " << vocabulary << " top-k " << args.top_k << " top-p " << args.top_p
          << " min-p " << args.min_p << " temperature " << args.temperature;
    }
  }
}

// More than a backend may have scratch memory for.
TEST_P(Sampling, ManyRowsOfALargeVocabulary) {
  const auto ops = GetParam().open();
  constexpr int32_t kVocabulary = 1 << 20;
  constexpr int32_t kRows = 11;
  std::vector<float> logits(kVocabulary, 0.0F);
  std::vector<std::unique_ptr<DeviceBuffer>> on_devices;
  std::vector<SampleArgs> rows;
  for (int32_t i = 0; i < kRows; ++i) {
    logits[1000 * i] = static_cast<float>(i + 1);
    on_devices.push_back(on_device(*ops, logits));
    // Rows of a temperature need the memory; of one candidate they draw what the others do.
    rows.push_back({.logits = on_devices.back()->floats(),
                    .vocabulary = kVocabulary,
                    .temperature = i % 3 == 1 ? 1.0F : 0.0F,
                    .top_k = 1});
  }
  const auto drawn = sample(*ops, rows);
  for (int32_t i = 0; i < kRows; ++i) EXPECT_EQ(drawn[i], 1000 * i);
  ops->sample({});
}

TEST_P(Sampling, ChangesTheLogitsNamed) {
  const auto ops = GetParam().open();
  const auto row = on_device(*ops, std::vector<float>{1.0F, -2.0F, 3.0F, 0.5F});
  ops->change_logits(row->floats(), LogitChange::kAdd, {{0, 1}}, {{0.25F, -1.0F}});
  ops->change_logits(row->floats(), LogitChange::kDiscourage, {{1, 2}}, {{2.0F, 2.0F}});
  ops->change_logits(row->floats(), LogitChange::kSet, {{3, 3}}, {{-7.0F, -7.0F}});
  ops->change_logits(row->floats(), LogitChange::kAdd, {}, {});
  EXPECT_EQ(from_device(*ops, *row), (std::vector<float>{1.25F, -6.0F, 1.5F, -7.0F}));
}

TEST_P(Sampling, InfiniteLogitsTakeAll) {
  const auto ops = GetParam().open();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto draw_from = [&](const std::vector<float>& logits, uint32_t position) {
    const auto row = on_device(*ops, logits);
    const SampleArgs args{.logits = row->floats(),
                          .vocabulary = static_cast<int32_t>(logits.size()),
                          .position = position};
    return sample(*ops, {args}).front();
  };
  std::set<int32_t> drawn;
  for (uint32_t i = 0; i < 30; ++i) {
    drawn.insert(draw_from({1.0F, kInfinity, 5.0F, kInfinity}, i));
    drawn.insert(draw_from({std::nanf(""), 0.0F, std::nanf(""), 0.0F}, i));
  }
  EXPECT_EQ(drawn, (std::set<int32_t>{1, 3}));
}

// Rows of one call ask for different things, and each gets what it would alone.
TEST_P(Sampling, LogprobsAreThoseOfTheHost) {
  const auto ops = GetParam().open();
  Random random(22);
  for (const int32_t vocabulary : {1, 9, 3000}) {
    std::vector<std::vector<float>> logits;
    std::vector<std::unique_ptr<DeviceBuffer>> on_devices;
    std::vector<LogprobArgs> rows;
    for (const int32_t num_top : {0, 1, std::min(20, vocabulary), vocabulary, 0}) {
      for (const int32_t id : {0, vocabulary - 1, vocabulary / 2}) {
        auto& row = logits.emplace_back(random.floats(vocabulary, 4.0F));
        for (int32_t i = 0; i < vocabulary / 3; ++i) {
          row[i] = row[random.below(vocabulary)];  // equal ones
        }
        on_devices.push_back(on_device(*ops, row));
        rows.push_back(
            {.logits = on_devices.back()->floats(), .token = {.id = id}, .num_top = num_top});
      }
    }
    const std::vector<Logged> found = find_logprobs(*ops, rows, vocabulary);
    for (size_t i = 0; i < rows.size(); ++i) {
      const Logged alone = find_logprobs(*ops, {rows[i]}, vocabulary).front();
      Logged expected{.top = std::vector<TopEntry>(rows[i].num_top)};
      row_logprobs({.logits = logits[i].data(),
                    .token = rows[i].token,
                    .own = &expected.own,
                    .num_top = rows[i].num_top,
                    .top = expected.top.data()},
                   vocabulary);
      put_in_order(expected.top);
      ASSERT_NEAR(found[i].own, expected.own, 1e-5);
      ASSERT_EQ(found[i].own, alone.own);
      for (int32_t j = 0; j < rows[i].num_top; ++j) {
        ASSERT_EQ(found[i].top[j].id, expected.top[j].id) << j << " of " << rows[i].num_top;
        ASSERT_NEAR(found[i].top[j].logprob, expected.top[j].logprob, 1e-5);
        ASSERT_EQ(found[i].top[j].logprob, alone.top[j].logprob);
      }
    }
  }
  ops->logprobs({}, 9);
}

TEST_P(Sampling, ManyLogprobsOfALargeVocabulary) {
  const auto ops = GetParam().open();
  constexpr int32_t kVocabulary = 1 << 20;
  constexpr int32_t kRows = 9;
  std::vector<float> logits(kVocabulary);
  for (int32_t id = 0; id < kVocabulary; ++id) logits[id] = static_cast<float>(-id);
  const auto row = on_device(*ops, logits);
  std::vector<LogprobArgs> rows;
  for (int32_t i = 0; i < kRows; ++i) {
    rows.push_back(
        {.logits = row->floats(), .token = {.id = i}, .num_top = i == 4 ? 1 : kVocabulary});
  }
  const std::vector<Logged> found = find_logprobs(*ops, rows, kVocabulary);
  const double norm = std::log(1.0 / (1.0 - std::exp(-1.0)));
  for (int32_t i = 0; i < kRows; ++i) {
    EXPECT_NEAR(found[i].own, -i - norm, 1e-5);
    int32_t num_wrong = 0;
    for (int32_t id = 0; id < rows[i].num_top; ++id) {
      const TopEntry& entry = found[i].top[id];
      num_wrong += entry.id != id || entry.logprob > static_cast<float>(-id) ? 1 : 0;
    }
    EXPECT_EQ(num_wrong, 0) << "row " << i;
  }
}

}  // namespace
}  // namespace lckv
