// The relay against scripted frames.
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/text/stream_detokenizer.h"
#include "rpc/status_mapping.h"
#include "tests/router/relay_fixture.h"

namespace lckv {
namespace {

using ::testing::ElementsAre;

TEST_F(RelayTest, EventsOfAChoiceInOrderJoinedWhileTheReaderLags) {
  start();
  tokens({300});
  tokens({301, 302});
  finish(internal::v1::Finished::REASON_EOS);
  const auto events = drain();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0].started().sampling().seed(), 5u);
  EXPECT_EQ(events[1].tokens().position(), 0u);
  EXPECT_THAT(events[1].tokens().ids(), ElementsAre(300, 301, 302));
  EXPECT_EQ(events[2].finished().reason(), v1::Finished::REASON_EOS);
  EXPECT_EQ(events[2].finished().usage().num_generated_tokens(), 3u);
  EXPECT_EQ(events[2].finished().usage().queue_seconds(), 0.5);
  EXPECT_TRUE(relay().ended());
  EXPECT_TRUE(relay().status().ok());
  EXPECT_EQ(text_, decode(model_->tokenizer->vocabulary(), {300u, 301u, 302u}));
}

TEST_F(RelayTest, StopStringCutsTextCancelsAndDropsWhatFollows) {
  request_.mutable_stopping()->add_stop_strings("two");
  start();
  std::vector<uint32_t> ids = ids_of("one two");
  const size_t until_match = ids.size();
  for (const uint32_t id : ids_of("three")) ids.push_back(id);
  tokens(ids);
  EXPECT_EQ(relay().take_commands().size(), 1u);
  tokens({300});
  const auto events = drain();
  EXPECT_EQ(text_, "one ");
  EXPECT_EQ(events[1].tokens().ids_size(), static_cast<int>(until_match));
  EXPECT_EQ(events.back().finished().reason(), v1::Finished::REASON_STOP_STRING);
  EXPECT_EQ(events.back().finished().matched_stop_string(), "two");
  EXPECT_TRUE(relay().ended());
}

TEST_F(RelayTest, PausesAboveTheMarkAndGoesOnBelow) {
  options_ = {.pause_above_bytes = 2000, .unpause_below_bytes = 500, .event_bytes = 400};
  start();
  for (int i = 0; i < 300; ++i) tokens({300});
  auto commands = relay().take_commands();
  ASSERT_EQ(commands.size(), 1u);
  EXPECT_EQ(commands[0].kind, RelayCommand::Kind::kPause);
  drain();
  commands = relay().take_commands();
  ASSERT_EQ(commands.size(), 1u);
  EXPECT_EQ(commands[0].kind, RelayCommand::Kind::kUnpause);
  EXPECT_EQ(relay().waiting_bytes(), 0u);
}

TEST_F(RelayTest, LossAfterTokensIsInterruptedWithCounts) {
  request_.set_num_choices(2);
  start(0);
  start(1);
  tokens({300, 301}, 0);
  for (const uint32_t choice : {1u, 0u}) {
    relay().on_lost({choice, 1}, LossKind::kStopped, absl::UnavailableError("lost"), now_);
  }
  EXPECT_FALSE(relay().ended());  // what waits is sent first
  drain();
  ASSERT_TRUE(relay().ended());
  const absl::Status status = relay().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  const auto progress = interrupted_progress(status);
  ASSERT_TRUE(progress.has_value());
  EXPECT_EQ(progress->num_tokens(), 2u);
  EXPECT_EQ(progress->choices(0).num_text_bytes(), text_.size());
  EXPECT_EQ(progress->choices(1).num_text_bytes(), 0u);
}

TEST_F(RelayTest, ResumeAtEveryPointGivesTheSameTextAndIds) {
  const std::vector<uint32_t> ids = ids_of("one \xE2\x82\xAC two \xF0\x9F\x98\x80 three END");
  request_.mutable_stopping()->add_stop_strings("END");
  start();
  tokens(ids);
  drain();
  const std::string whole = text_;
  for (size_t cut = 1; cut <= ids.size(); ++cut) {
    // What a caller has after `cut` ids, and then with less of the text than of the ids.
    relay_.reset();
    request_.clear_resume();
    text_.clear();
    start();
    for (size_t i = 0; i < cut; ++i) tokens({ids[i]});
    drain();
    const std::string had = text_;
    for (const size_t bytes : {had.size(), size_t{0}}) {
      relay_.reset();
      request_.clear_resume();
      auto* progress = request_.mutable_resume()->add_choices();
      progress->mutable_ids()->Add(ids.begin(), ids.begin() + static_cast<long>(cut));
      progress->set_num_text_bytes(bytes);
      text_.clear();
      ASSERT_TRUE((relay(), prepared_).ok()) << prepared_;
      if (!submits().empty()) {
        start();
        tokens({ids.begin() + static_cast<long>(cut), ids.end()});
      }
      const auto events = drain();
      EXPECT_EQ(had.substr(0, bytes) + text_, whole) << "cut " << cut;
      ASSERT_TRUE(relay().ended());
      EXPECT_EQ(events.front().has_started(), true);
      EXPECT_EQ(events.back().finished().reason(), v1::Finished::REASON_STOP_STRING);
      for (const auto& event : events) {
        EXPECT_TRUE(!event.has_tokens() || event.tokens().position() == cut);
      }
    }
  }
}

TEST_F(RelayTest, ResumedChoicesAtTheirEndNeedNoReplica) {
  request_.set_num_choices(4);
  request_.mutable_stopping()->set_max_new_tokens(3);
  auto* eos = request_.mutable_resume()->add_choices();
  eos->set_choice(0);
  eos->add_ids(300);
  eos->add_ids(2);
  auto* full = request_.mutable_resume()->add_choices();
  full->set_choice(1);
  for (uint32_t id = 300; id < 303; ++id) full->add_ids(id);
  auto* done = request_.mutable_resume()->add_choices();
  done->set_choice(2);
  done->set_finished(true);
  ASSERT_EQ(submits().size(), 1u);
  EXPECT_EQ(submits()[0].choice(), 3u);
  std::vector<int> reasons(4, -1);
  for (const auto& event : drain()) {
    if (event.has_finished()) reasons[event.choice()] = event.finished().reason();
  }
  EXPECT_THAT(reasons,
              ElementsAre(v1::Finished::REASON_EOS, v1::Finished::REASON_MAX_NEW_TOKENS, -1, -1));
}

TEST_F(RelayTest, ClaimedTextThatCannotBeIsRefused) {
  request_.mutable_resume()->add_choices()->add_ids(300);
  request_.mutable_resume()->mutable_choices(0)->set_num_text_bytes(100);
  relay();
  EXPECT_EQ(prepared_.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RelayTest, PromptLogprobsComeInPiecesOfChoiceZeroOnly) {
  options_.event_bytes = 100;
  request_.set_text("Once upon a time there was a fox");
  request_.mutable_output()->set_num_prompt_logprobs(1);
  request_.set_num_choices(2);
  EXPECT_TRUE(submits()[0].has_num_prompt_logprobs());
  EXPECT_FALSE(submits()[1].has_num_prompt_logprobs());
  const size_t size = relay().spec().prompt.size();
  internal::v1::PromptLogprobs prompt;
  for (size_t i = 0; i < size; ++i) {
    auto* entry = prompt.add_logprobs();
    if (i == 0) continue;
    entry->set_own(-1.0f * static_cast<float>(i));
    entry->add_top_ids(300);
    entry->add_top_logprobs(-0.5f);
  }
  start();
  relay().on_update({0, 1}, {.prompt_logprobs = {&prompt}}, now_);
  size_t next = 0;
  int pieces = 0;
  for (const auto& event : drain()) {
    if (!event.has_prompt_logprobs()) continue;
    ++pieces;
    EXPECT_EQ(event.prompt_logprobs().position(), next);
    for (const auto& entry : event.prompt_logprobs().logprobs()) {
      EXPECT_EQ(entry.id(), relay().spec().prompt[next]);
      EXPECT_EQ(entry.has_logprob(), next > 0);
      ++next;
    }
  }
  EXPECT_EQ(next, size);
  EXPECT_GT(pieces, 1);
}

TEST_F(RelayTest, EngineFailureIsInternalWithReason) {
  start();
  tokens({300});
  finish(internal::v1::Finished::REASON_FAILED);
  drain();
  EXPECT_EQ(relay().status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(error_reason(relay().status()), "ENGINE_FAILED");
}

}  // namespace
}  // namespace lckv
