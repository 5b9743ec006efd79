// The relay when replicas die, drain or have no room.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "rpc/status_mapping.h"
#include "tests/router/relay_fixture.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST_F(RelayTest, LostStreamGoesOnBehindItsLastTokenAtEveryCut) {
  const std::vector<uint32_t> ids = ids_of("one \xE2\x82\xAC two \xF0\x9F\x98\x80 three END more");
  request_.mutable_stopping()->add_stop_strings("END");
  start();
  tokens(ids);
  drain();
  const std::string whole = text_;
  ASSERT_TRUE(relay().ended());
  for (size_t cut = 1; cut < ids.size(); ++cut) {
    relay_.reset();
    text_.clear();
    start();
    for (size_t i = 0; i < cut; ++i) tokens({ids[i]});
    if (relay().take_commands().empty()) {  // not at the stop string yet
      lose();
      const auto needs = relay().take_needs();
      ASSERT_EQ(needs.size(), 1u);
      EXPECT_TRUE(needs[0].resume && !needs[0].charged && !needs[0].delayed);
      place();
      ASSERT_EQ(submits().size(), 1u);
      EXPECT_THAT(
          std::vector<uint32_t>(submits()[0].resumed().begin(), submits()[0].resumed().end()),
          ::testing::ElementsAreArray(ids.begin(), ids.begin() + static_cast<long>(cut)));
      EXPECT_EQ(submits()[0].attempt(), 2u);
      start();
      tokens({ids.begin() + static_cast<long>(cut), ids.end()});
    }
    const auto events = drain();
    EXPECT_EQ(text_, whole) << "cut " << cut;
    ASSERT_TRUE(relay().ended());
    int num_started = 0;
    for (const auto& event : events) num_started += event.has_started();
    EXPECT_EQ(num_started, 1);
    EXPECT_EQ(events.back().finished().reason(), v1::Finished::REASON_STOP_STRING);
  }
}

TEST_F(RelayTest, UsageCountsMovesOfEachChoice) {
  request_.set_num_choices(2);
  for (const uint32_t choice : {0u, 1u}) start(choice);
  tokens({300}, 0);
  lose(LossKind::kMoved, 1);  // has no token, but the call has
  EXPECT_TRUE(relay().take_needs().at(0).resume);
  place();
  EXPECT_THAT(submits()[0].resumed(), IsEmpty());
  finish(internal::v1::Finished::REASON_EOS, 1);
  attempt_ = 1;
  finish(internal::v1::Finished::REASON_EOS, 0);
  std::vector<uint32_t> moves(2, 9);
  for (const auto& event : drain()) {
    if (event.has_finished()) moves[event.choice()] = event.finished().usage().num_resumes();
  }
  EXPECT_THAT(moves, ElementsAre(0, 1));
}

TEST_F(RelayTest, WhatALeftReplicaStillSaysIsIgnored) {
  start();
  tokens({300});
  lose();
  tokens({999});  // attempt 1 had it under way
  place();
  relay().on_update({0, 1}, {.tokens = {998}}, now_);
  relay().on_lost({0, 1}, LossKind::kDied, absl::UnavailableError("late"), now_);
  EXPECT_EQ(relay().take_needs().size(), 1u);
  tokens({301});
  std::vector<uint32_t> ids;
  for (const auto& event : drain()) {
    ids.insert(ids.end(), event.tokens().ids().begin(), event.tokens().ids().end());
  }
  EXPECT_THAT(ids, ElementsAre(300, 301));
}

TEST_F(RelayTest, LostBetweenLastTokenAndFinishedEndsHere) {
  request_.mutable_stopping()->set_max_new_tokens(2);
  start();
  tokens({300, 301});
  lose();
  EXPECT_THAT(relay().take_needs(), IsEmpty());
  const auto events = drain();
  EXPECT_EQ(events.back().finished().reason(), v1::Finished::REASON_MAX_NEW_TOKENS);
  EXPECT_TRUE(relay().ended() && relay().status().ok());
}

TEST_F(RelayTest, ACallThatHasDeliveredNothingIsRetriedOnTheBudget) {
  start();
  lose();
  const auto needs = relay().take_needs();
  ASSERT_EQ(needs.size(), 1u);
  EXPECT_TRUE(!needs[0].resume && needs[0].charged && needs[0].delayed);
  place();
  tokens({300});
  finish(internal::v1::Finished::REASON_EOS);
  EXPECT_EQ(drain().back().finished().usage().num_resumes(), 0u);
}

TEST_F(RelayTest, NoRoomIsRetriedLaterAndNeverToldToTheClient) {
  internal::v1::Refused refused;
  refused.set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
  relay().on_refused({0, attempt_}, refused, now_);
  const auto needs = relay().take_needs();
  ASSERT_EQ(needs.size(), 1u);
  EXPECT_TRUE(!needs[0].resume && needs[0].charged && needs[0].delayed);
  EXPECT_FALSE(relay().failed());
  place();
  tokens({300});
  relay().on_refused({0, attempt_}, refused, now_);
  const auto resumed = relay().take_needs();
  ASSERT_EQ(resumed.size(), 1u);
  EXPECT_TRUE(resumed[0].resume && !resumed[0].charged && resumed[0].delayed);
}

// However often it is refused: from when on it has waited decides when it is told so.
TEST_F(RelayTest, BeingRefusedAgainAndAgainIsOneWait) {
  internal::v1::Refused refused;
  refused.set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
  relay().on_seated({0, attempt_});
  tokens({300});
  const absl::Time lost = now_ += absl::Seconds(7);
  lose();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(relay().take_needs().at(0).since, lost);
    place();
    now_ += absl::Seconds(7);
    relay().on_refused({0, attempt_}, refused, now_);
  }
  EXPECT_EQ(relay().take_needs().at(0).since, lost);
  place();
  relay().on_seated({0, attempt_});
  lose();
  EXPECT_EQ(relay().take_needs().at(0).since, now_);
}

TEST_F(RelayTest, ADrainingReplicasRefusalCostsNoRetry) {
  internal::v1::Refused refused;
  refused.set_code(static_cast<int>(absl::StatusCode::kUnavailable));
  relay().on_refused({0, attempt_}, refused, now_);
  EXPECT_FALSE(relay().take_needs().at(0).charged);
}

TEST_F(RelayTest, ThreeDeathsInItsStepWithoutATokenArePoison) {
  for (int death = 0; death < 3; ++death) {
    relay().on_seated({0, attempt_});
    EXPECT_FALSE(relay().failed());
    lose();
    if (death < 2) place();
  }
  ASSERT_TRUE(relay().ended());
  EXPECT_EQ(relay().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(error_reason(relay().status()), "POISON");
}

TEST_F(RelayTest, OnlyDeathsInItsStepWithoutATokenCountAsPoison) {
  // Where it only waited, where it was moved, where it was paused: not counted.
  for (int i = 0; i < 3; ++i) {
    lose();
    place();
    relay().on_seated({0, attempt_});
    lose(LossKind::kMoved);
    place();
  }
  // A token starts the count anew.
  uint32_t next = 300;
  for (int i = 0; i < 6; ++i) {
    relay().on_seated({0, attempt_});
    if (i % 3 == 2) tokens({next++});
    lose();
    place();
  }
  EXPECT_FALSE(relay().failed());
}

TEST_F(RelayTest, APausedReaderStaysPausedAtTheNextReplica) {
  options_ = {.pause_above_bytes = 2000, .unpause_below_bytes = 500, .event_bytes = 400};
  start();
  for (int i = 0; i < 300; ++i) tokens({300});
  relay().take_commands();
  lose();
  place();
  const auto commands = relay().take_commands();
  ASSERT_EQ(commands.size(), 1u);
  EXPECT_EQ(commands[0].kind, RelayCommand::Kind::kPause);
  // It took part in no step, so its deaths there blame it for nothing.
  for (int i = 0; i < 4; ++i) {
    start();
    lose();
    place();
  }
  EXPECT_FALSE(relay().failed());
}

TEST_F(RelayTest, OnceTheCallerKnowsAFingerprintNoOtherWillDo) {
  EXPECT_EQ(relay().required_fingerprint(), "fingerprint-1");  // placed: Started is under way
  lose();
  EXPECT_EQ(relay().required_fingerprint(), "");
  place("fingerprint-2");
  start();
  lose();
  EXPECT_EQ(relay().required_fingerprint(), "fingerprint-2");
}

TEST_F(RelayTest, ChoicesThatWaitApartEndUpAtOneFingerprint) {
  request_.set_num_choices(2);
  for (const uint32_t choice : {0u, 1u}) {
    relay();
    lose(LossKind::kDied, choice);
  }
  EXPECT_TRUE(relay().accepts("fingerprint-2"));
  relay().on_placed({0}, "fingerprint-2", now_);
  EXPECT_TRUE(relay().accepts("fingerprint-2"));
  EXPECT_FALSE(relay().accepts("fingerprint-1"));
}

TEST_F(RelayTest, PromptLogprobsOfASecondRunAreNotSentAgain) {
  request_.set_text("Once upon a time");
  request_.mutable_output()->set_num_prompt_logprobs(0);
  const size_t size = relay().spec().prompt.size();
  ASSERT_GT(size, 2u);
  const auto score = [&](uint32_t begin, size_t end) {
    internal::v1::PromptLogprobs prompt;
    prompt.set_position(begin);
    for (size_t i = begin; i < end; ++i) prompt.add_logprobs()->set_own(-1.0f);
    relay().on_update({0, attempt_}, {.prompt_logprobs = {&prompt}}, now_);
  };
  start();
  score(0, 2);
  lose();
  EXPECT_TRUE(relay().take_needs().at(0).resume);
  place();
  EXPECT_TRUE(submits()[0].has_num_prompt_logprobs());
  start();
  score(0, size);
  lose();
  place();
  EXPECT_FALSE(submits()[0].has_num_prompt_logprobs());
  size_t next = 0;
  for (const auto& event : drain()) {
    if (!event.has_prompt_logprobs()) continue;
    EXPECT_EQ(event.prompt_logprobs().position(), next);
    next += static_cast<size_t>(event.prompt_logprobs().logprobs_size());
  }
  EXPECT_EQ(next, size);
}

}  // namespace
}  // namespace lckv
