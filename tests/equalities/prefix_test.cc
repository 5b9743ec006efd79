// Taken from shared blocks = run: a prefix hit gives what a miss gives, and nobody's blocks show
// where they must not.
#include <algorithm>

#include "tests/equalities/equality.h"

namespace lckv {
namespace {

class Prefix : public Equality {
 protected:
  LocalOptions sharing() const {
    LocalOptions options = Equality::options();
    options.tolerance = default_tolerance();
    options.prefix_caching = true;
    return options;
  }
  LocalOptions alone_options() const {
    LocalOptions options = sharing();
    options.prefix_caching = false;
    return options;
  }
  // Prompts that begin as that of workload()[4], of 70 tokens, does: all of it, then 69, 64, 33,
  // 16, 3 and 0 tokens of it and then others.
  std::vector<SequenceSpec> related_workload(uint64_t seed) const {
    const auto specs = workload(seed);
    const auto others = workload(seed + 100);
    std::vector<SequenceSpec> related;
    for (const int32_t common : {70, 69, 64, 33, 16, 3, 0}) {
      SequenceSpec spec = specs[4];
      spec.sampling.seed += common;
      std::copy(others[4].prompt.begin() + common, others[4].prompt.end(),
                spec.prompt.begin() + common);
      related.push_back(std::move(spec));
    }
    return related;
  }
  // One after the other in one replica: each finds what those before it left.
  static std::vector<Transcript> in_turn(LocalReplica& replica,
                                         const std::vector<SequenceSpec>& specs) {
    std::vector<Transcript> transcripts;
    for (const SequenceSpec& spec : specs) {
      const SequenceId id = replica.submit(spec);
      replica.run();
      transcripts.push_back(replica.transcript(id));
    }
    return transcripts;
  }
  // The others come while the first one runs.
  static std::vector<SequenceId> beside_the_first(LocalReplica& replica,
                                                  const std::vector<SequenceSpec>& specs) {
    std::vector<SequenceId> ids = {replica.submit(specs.front())};
    while (replica.transcript(ids.front()).tokens.empty()) replica.step();
    for (size_t i = 1; i < specs.size(); ++i) {
      ids.push_back(replica.submit(specs[i]));
      replica.step();
    }
    replica.run();
    return ids;
  }
  static std::vector<int32_t> num_cached(const std::vector<Transcript>& transcripts) {
    std::vector<int32_t> counts;
    for (const Transcript& transcript : transcripts) counts.push_back(transcript.num_cached_tokens);
    return counts;
  }
};

TEST_P(Prefix, HitIsMiss) {
  const auto specs = related_workload(1);
  const auto replica = open_replica(sharing());
  const SchedulerLoad at_start = replica->scheduler().load();
  const auto transcripts = in_turn(*replica, specs);
  expect_empty(*replica, at_start);
  EXPECT_EQ(num_cached(transcripts), (std::vector<int32_t>{0, 64, 64, 32, 16, 0, 0}));
  expect_equal(transcripts, alone(alone_options(), specs));
  // And once more, all of it known.
  expect_equal(in_turn(*replica, specs), transcripts);
}

// All at once, in any step, with two plans in flight.
TEST_P(Prefix, SharingWhileRunningIsMiss) {
  LocalOptions ahead = sharing();
  ahead.max_uncommitted_plans = 2;
  ahead.max_batched_rows = 50;
  auto specs = related_workload(2);
  for (SequenceSpec& spec : specs) spec.max_new_tokens = 25;
  const auto expected = alone(alone_options(), specs);
  const auto replica = open_replica(ahead);
  const auto ids = beside_the_first(*replica, specs);
  int32_t most = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    most = std::max(most, replica->transcript(ids[i]).num_cached_tokens);
    EXPECT_EQ(difference(replica->transcript(ids[i]), expected[i]), "") << "sequence " << i;
  }
  EXPECT_EQ(most, 64);
}

TEST_P(Prefix, HitIsMissUnderPreemption) {
  auto specs = related_workload(3);
  for (SequenceSpec& spec : specs) spec.max_new_tokens = 25;
  const auto expected = alone(alone_options(), specs);
  for (const int32_t num_host_blocks : {0, 64}) {
    SCOPED_TRACE(testing::Message() << num_host_blocks << " host blocks");
    LocalOptions scarce = sharing();
    const auto geometry = open_local_runner(scarce)->geometry;
    scarce.num_blocks = static_cast<int32_t>(geometry.blocks_of(70 + 25)) * 2;
    scarce.num_host_blocks = num_host_blocks;
    const auto replica = open_replica(scarce);
    const SchedulerLoad at_start = replica->scheduler().load();
    for (int round = 0; round < 2; ++round) {
      const auto ids = beside_the_first(*replica, specs);
      for (size_t i = 0; i < ids.size(); ++i) {
        EXPECT_EQ(difference(replica->transcript(ids[i]), expected[i]), "") << "sequence " << i;
      }
    }
    expect_empty(*replica, at_start);
    EXPECT_GT(replica->scheduler().load().num_preemptions, 0U);
    EXPECT_GT(replica->scheduler().load().num_prefix_hits, 0U);
  }
}

// A conversation: the second prompt holds the first one's answer.
TEST_P(Prefix, AnswersInPromptsAreMiss) {
  SequenceSpec first = workload(4)[3];
  first.num_prompt_logprobs.reset();
  first.max_new_tokens = 40;
  const auto replica = open_replica(sharing());
  const Transcript answer = in_turn(*replica, {first}).front();
  SequenceSpec second = workload(4)[3];
  second.num_prompt_logprobs.reset();
  second.prompt.insert(second.prompt.end(), answer.tokens.begin(), answer.tokens.end());
  second.prompt.push_back(5);
  const Transcript turn = in_turn(*replica, {second}).front();
  expect_equal({turn}, alone(alone_options(), {second}));
  // 37 of the prompt and 39 that were fed; at a tolerance answers are not what prompts are.
  const bool exact = !has_cycles() || default_tolerance() == 0.0F;
  EXPECT_EQ(turn.num_cached_tokens, exact ? 64 : 32);
}

// Free windows at tolerance 0: any end of a hit will do.
TEST_P(Prefix, ExactSettlingTakesAnyWindow) {
  LocalOptions free = sharing();
  free.tolerance = 0.0F;
  free.fixed_windows = false;
  free.lookahead = 11;
  const auto specs = related_workload(5);
  const auto replica = open_replica(free);
  free.prefix_caching = false;
  const auto transcripts = in_turn(*replica, specs);
  expect_equal(transcripts, alone(free, specs));
  EXPECT_GT(replica->scheduler().load().num_prefix_hits, 0U);
}

TEST_P(Prefix, TenantsAndSaltsShareNothing) {
  const auto replica = open_replica(sharing());
  std::vector<SequenceSpec> specs(4, workload(6)[4]);
  specs[1].tenant = "another";
  specs[2].prefix_salt = "salt";
  specs[3].skip_prefix_cache = true;
  const auto transcripts = in_turn(*replica, specs);
  EXPECT_EQ(num_cached(transcripts), (std::vector<int32_t>{0, 0, 0, 0}));
  EXPECT_EQ(in_turn(*replica, {specs[2]}).front().num_cached_tokens, 64);
}

INSTANTIATE_TEST_SUITE_P(Maps, Prefix, testing::ValuesIn(layer_maps()), case_name);
INSTANTIATE_TEST_SUITE_P(Demo, Prefix, testing::ValuesIn(demo_model()), case_name);

}  // namespace
}  // namespace lckv
