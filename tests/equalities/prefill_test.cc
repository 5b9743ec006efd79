// However exact prefill is scheduled, it gives the token-by-token result.
#include "tests/equalities/equality.h"
#include "tests/support/naive_planner.h"

namespace lckv {
namespace {

class Prefill : public Equality {
 protected:
  // Prompts in exact mode, all of their logits asked for.
  std::vector<SequenceSpec> exact_workload(uint64_t seed) const {
    auto specs = workload(seed);
    for (SequenceSpec& spec : specs) {
      spec.prefill_mode = PrefillMode::kExact;
      spec.num_prompt_logprobs = 0;
    }
    return specs;
  }
  // Feeds prompt and tokens one by one, without a scheduler.
  Transcript token_by_token(const SequenceSpec& spec, const std::vector<int32_t>& tokens) const {
    auto local = open_local_runner(options());
    EXPECT_TRUE(local.ok()) << local.status();
    NaivePlanner planner(*local);
    Transcript transcript{.tokens = tokens, .finished = true};
    std::vector<int32_t> fed = spec.prompt;
    fed.insert(fed.end(), tokens.begin(), tokens.end() - 1);
    const auto last = static_cast<int32_t>(spec.prompt.size()) - 1;
    for (int32_t i = 0; i < static_cast<int32_t>(fed.size()); ++i) {
      auto logits = planner.feed(fed[i]);
      if (i < last) {
        transcript.prompt_logits[i + 1] = std::move(logits);
      } else {
        transcript.logits[i - last] = std::move(logits);
      }
    }
    return transcript;
  }
};

TEST_P(Prefill, EveryLookaheadIsTokenByToken) {
  const auto specs = exact_workload(1);
  std::vector<Transcript> expected;
  for (const int32_t lookahead : {1, 4, 16, 64, 0}) {
    SCOPED_TRACE(testing::Message() << "look-ahead " << lookahead);
    LocalOptions other = options();
    other.lookahead = lookahead;
    other.fixed_windows = lookahead > 0;
    const auto transcripts = together(other, specs);
    if (expected.empty()) {
      for (size_t i = 0; i < specs.size(); ++i) {
        expected.push_back(token_by_token(specs[i], transcripts[i].tokens));
      }
    }
    expect_equal(transcripts, expected);
  }
}

// Windows that follow the load instead of fixed multiples.
TEST_P(Prefill, MovingWindowsAreTokenByToken) {
  const auto specs = exact_workload(2);
  const auto expected = together(options(), specs);
  LocalOptions moving = options();
  moving.fixed_windows = false;
  moving.lookahead = 11;
  moving.max_row_layers = 150;
  expect_equal(together(moving, specs), expected);
}

// With a tolerance, what settles depends on the sequence alone.
TEST_P(Prefill, DefaultToleranceDoesNotDependOnLoad) {
  LocalOptions tolerant = options();
  tolerant.tolerance = default_tolerance();
  const auto specs = workload(3);
  const auto expected = alone(tolerant, specs);
  expect_equal(together(tolerant, specs), expected);
  LocalOptions crowded = tolerant;
  crowded.max_row_layers = 300;
  crowded.max_batched_rows = 70;
  crowded.staging_rows = 96;
  expect_equal(together(crowded, specs), expected);
}

TEST_P(Prefill, ChunkedIsWhole) {
  const auto specs = workload(4);
  const auto expected = together(options(), specs);
  for (const int32_t max_rows : {16, 19, 50}) {
    SCOPED_TRACE(testing::Message() << "rows " << max_rows);
    LocalOptions chunked = options();
    chunked.max_batched_rows = max_rows;
    expect_equal(together(chunked, specs), expected);
  }
}

// Rows are first read as a guess, then as the last walk gave them: a window of 64 rows of a trained
// model settles in a few walks, not in 64.
TEST(PrefillWalks, WindowsSettleInFewWalks) {
  const LocalOptions options{.model = "deploy/models/demo",
                             .dtype = DType::kBFloat16,
                             .lookahead = 64,
                             .tolerance = 1.0F / 512};
  const auto replica = open_replica(options);
  SequenceSpec spec;
  spec.prompt = random_tokens(11, 256, replica->local().config.vocabulary_size);
  spec.max_new_tokens = 1;
  const SequenceId sequence = replica->submit(std::move(spec));
  replica->run();
  ASSERT_TRUE(replica->transcript(sequence).finished);
  EXPECT_GE(replica->transcript(sequence).num_prefill_walks, 4);
  EXPECT_LE(replica->transcript(sequence).num_prefill_walks, 4 * 8);
}

INSTANTIATE_TEST_SUITE_P(Maps, Prefill, testing::ValuesIn(layer_maps()), case_name);
INSTANTIATE_TEST_SUITE_P(Demo, Prefill, testing::ValuesIn(demo_model()), case_name);

}  // namespace
}  // namespace lckv
