// Text classes: whatever the pieces, the whole is the same.
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/text/choice_text.h"
#include "router/text/sentencepiece_model.h"
#include "router/text/stop_matcher.h"
#include "router/text/stream_detokenizer.h"
#include "router/text/tokenizer.h"
#include "router/text/utf8.h"
#include "tests/router/fake_leader.h"

namespace lckv {
namespace {

bool is_valid_utf8(const std::string& text) { return to_valid_utf8(text) == text; }

class TextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    seed_ = std::random_device{}();
    random_.seed(seed_);
    RecordProperty("seed", std::to_string(seed_));
    std::string error;
    bytes_ = read_file("deploy/models/demo/tokenizer.model");
    model_ = SentencePieceModel::parse(bytes_, error);
    ASSERT_NE(model_, nullptr) << error;
    auto tokenizer = load_tokenizer({.sentencepiece_model = bytes_});
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *tokenizer;
  }

  uint32_t below(uint32_t limit) {
    return std::uniform_int_distribution<uint32_t>(0, limit - 1)(random_);
  }

  // Many byte pieces and specials (the first 260 ids), so that characters break in every way.
  std::vector<uint32_t> random_ids() {
    std::vector<uint32_t> ids(below(30));
    for (uint32_t& id : ids) {
      id = below(3) == 0 ? below(static_cast<uint32_t>(model_->num_pieces())) : below(260);
    }
    return ids;
  }

  uint32_t seed_ = 0;
  std::mt19937 random_;
  std::string bytes_;
  std::unique_ptr<const SentencePieceModel> model_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(TextTest, StreamEqualsTheLibrarysDecodeOfAllIds) {
  SCOPED_TRACE("seed " + std::to_string(seed_));
  for (int round = 0; round < 20000; ++round) {
    const std::vector<uint32_t> ids = random_ids();
    StreamDetokenizer stream(tokenizer_->vocabulary());
    std::string text;
    for (const uint32_t id : ids) {
      const std::string piece = stream.push(id);
      ASSERT_TRUE(is_valid_utf8(piece)) << ::testing::PrintToString(ids);
      text += piece;
    }
    text += stream.finish();
    ASSERT_EQ(text, model_->decode({ids.begin(), ids.end()})) << ::testing::PrintToString(ids);
    ASSERT_EQ(text, decode(tokenizer_->vocabulary(), ids));
  }
}

TEST_F(TextTest, CharactersOfSeveralBytesComeWholeAndAtOnce) {
  const std::string text = "a\xE2\x82\xAC\xF0\x9F\x98\x80z";
  const auto ids = tokenizer_->encode(text);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->front(), 1u);
  StreamDetokenizer stream(tokenizer_->vocabulary());
  std::string streamed;
  for (const uint32_t id : *ids) streamed += stream.push(id);
  EXPECT_EQ(streamed, text);  // nothing was left for finish()
  EXPECT_EQ(stream.finish(), "");
}

TEST_F(TextTest, SpecialTokensAsTheConfigSays) {
  const auto with = [&](const std::string& config) {
    const auto tokenizer =
        load_tokenizer({.sentencepiece_model = bytes_, .config_json = config, .eos_token_id = 2});
    return tokenizer.ok() ? *(*tokenizer)->encode("") : std::vector<uint32_t>{999};
  };
  EXPECT_THAT(with(""), ::testing::ElementsAre(1));
  EXPECT_THAT(with(R"({"add_bos_token": false})"), ::testing::IsEmpty());
  EXPECT_THAT(with(R"({"add_bos_token": true, "add_eos_token": true})"),
              ::testing::ElementsAre(1, 2));
  EXPECT_THAT(with("{\"add_bos_token\": 3}"), ::testing::ElementsAre(999));
  EXPECT_THAT(with("no json"), ::testing::ElementsAre(999));
  EXPECT_FALSE(load_tokenizer({.sentencepiece_model = "garbage"}).ok());
  EXPECT_FALSE(load_tokenizer({.sentencepiece_model = bytes_.substr(0, 1000)}).ok());
}

// The rule of the header, over the whole text at once.
std::string expected_match(const std::string& text, const std::vector<std::string>& stops,
                           bool include, int& index) {
  index = -1;
  size_t best_begin = 0;
  for (size_t end = 1; end <= text.size() && index < 0; ++end) {
    for (size_t i = 0; i < stops.size(); ++i) {
      if (end < stops[i].size()) continue;
      const size_t begin = end - stops[i].size();
      if (text.compare(begin, stops[i].size(), stops[i]) != 0) continue;
      if (index < 0 || begin < best_begin) {
        index = static_cast<int>(i);
        best_begin = begin;
      }
    }
    if (index >= 0) return text.substr(0, include ? end : best_begin);
  }
  return text;
}

TEST_F(TextTest, StopStringsAreFoundHoweverTheTextIsCut) {
  SCOPED_TRACE("seed " + std::to_string(seed_));
  const auto random_text = [&](uint32_t longest) {
    std::string text;
    for (uint32_t n = below(longest); n > 0; --n) text += static_cast<char>('a' + below(2));
    return text;
  };
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(1 + below(3));
    for (std::string& stop : stops) stop = "a" + random_text(5);
    const std::string text = random_text(24);
    const bool include = below(2) == 0;
    int index = -1;
    const std::string expected = expected_match(text, stops, include, index);
    StopMatcher matcher(stops, include);
    std::string got;
    int found = -1;
    for (size_t at = 0; at < text.size() && found < 0;) {
      const size_t size = 1 + below(4);
      StopMatcher::Found part = matcher.push(text.substr(at, size), true);
      got += part.text;
      found = part.stop_index;
      at += size;
    }
    if (found < 0) got += matcher.finish();
    ASSERT_EQ(got, expected) << text << " stops " << ::testing::PrintToString(stops);
    ASSERT_EQ(found < 0, index < 0);
    if (found >= 0) {
      ASSERT_EQ(stops[static_cast<size_t>(found)], stops[static_cast<size_t>(index)]);
    }
  }
}

TEST_F(TextTest, HoldsBackOnlyWhatCanStillMatch) {
  StopMatcher matcher({"END"}, false);
  EXPECT_EQ(matcher.push("abE", true).text, "ab");
  EXPECT_EQ(matcher.push("Nx", true).text, "ENx");
  EXPECT_EQ(matcher.push("E", true).text, "");
  EXPECT_EQ(matcher.finish(), "E");
}

TEST_F(TextTest, StopStringsDoNotEndBeforeTheLeastLength) {
  const auto ids = tokenizer_->encode("one two three two");
  ASSERT_TRUE(ids.ok());
  const std::vector<uint32_t> tokens(ids->begin() + 1, ids->end());
  const auto text_until_stop = [&](uint32_t least) {
    ChoiceText text(tokenizer_->vocabulary(), {.stop_strings = {"two"}, .min_new_tokens = least});
    std::string result;
    for (const uint32_t id : tokens) {
      if (text.stop_index() < 0) result += text.push(id);
    }
    return result + text.finish();
  };
  EXPECT_EQ(text_until_stop(0), "one ");
  EXPECT_EQ(text_until_stop(static_cast<uint32_t>(tokens.size())), "one two three ");
}

TEST(Utf8Test, PrefixesFollowTheStandard) {
  EXPECT_EQ(utf8_prefix("a").state, Utf8State::kWhole);
  EXPECT_EQ(utf8_prefix("\xE2\x82").state, Utf8State::kPartial);
  EXPECT_EQ(utf8_prefix("\xE2\x82\xAC").bytes, 3u);
  for (const char* bad : {"\x80", "\xC0\xAF", "\xC1", "\xE0\x80", "\xED\xA0", "\xF0\x80",
                          "\xF4\x90", "\xF5", "\xFF", "\xE2\x41"}) {
    EXPECT_EQ(utf8_prefix(bad).state, Utf8State::kInvalid) << bad;
  }
  EXPECT_EQ(to_valid_utf8("a\xFF\xE2\x82"), "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

}  // namespace
}  // namespace lckv
