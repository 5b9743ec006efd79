// Arbitrary bytes as tokenizer.model and tokenizer_config.json, and arbitrary ids and stop strings
// through the stream of text: nothing crashes, text is valid UTF-8 and does not depend on how it
// was cut.
//
// Input: one byte chooses. Even: the rest is a tokenizer.model, up to a zero line, then a
// tokenizer_config.json. Odd: a table of pieces, stop strings and ids, as take() reads them.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "router/text/choice_text.h"
#include "router/text/stop_matcher.h"
#include "router/text/stream_detokenizer.h"
#include "router/text/tokenizer.h"
#include "router/text/utf8.h"

namespace {

using lckv::Vocabulary;

void require(bool condition) {
  if (!condition) std::abort();
}

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  uint8_t take() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  std::string take_text(size_t longest) {
    std::string text;
    for (size_t size = take() % (longest + 1); size > 0 && left_ > 0; --size) {
      text += static_cast<char>(take());
    }
    return text;
  }
  size_t left() const { return left_; }

 private:
  const uint8_t* data_;
  size_t left_;
};

Vocabulary take_vocabulary(Input& input) {
  Vocabulary vocabulary;
  const uint8_t flags = input.take();
  vocabulary.drops_first_space = flags & 1;
  vocabulary.drops_all_first_spaces = (flags & 3) == 3;
  for (size_t count = 1 + input.take() % 32; count > 0; --count) {
    const uint8_t kind = input.take() % 4;
    Vocabulary::Entry entry;
    if (kind == 0) entry = {Vocabulary::Kind::kText, lckv::to_valid_utf8(input.take_text(6))};
    if (kind == 1) entry = {Vocabulary::Kind::kVerbatim, lckv::to_valid_utf8(input.take_text(6))};
    if (kind == 2) {
      entry = {Vocabulary::Kind::kByte, std::string(1, static_cast<char>(input.take()))};
    }
    vocabulary.entries.push_back(entry);
  }
  return vocabulary;
}

void stream_text(Input& input) {
  const Vocabulary vocabulary = take_vocabulary(input);
  std::vector<std::string> stops;
  for (size_t count = input.take() % 4; count > 0; --count) {
    stops.push_back(lckv::to_valid_utf8(input.take_text(4)));
    if (stops.back().empty()) stops.pop_back();
  }
  const bool include = input.take() & 1;
  const uint32_t least = input.take() % 8;
  std::vector<uint32_t> ids;
  while (input.left() > 0) ids.push_back(input.take() % 40);

  lckv::StreamDetokenizer stream(vocabulary);
  lckv::ChoiceText choice(vocabulary, {stops, include, least});
  std::string text;
  std::string until_stop;
  for (const uint32_t id : ids) {
    const std::string piece = stream.push(id);
    require(lckv::to_valid_utf8(piece) == piece);
    text += piece;
    if (choice.stop_index() >= 0) continue;
    const std::string certain = choice.push(id);
    require(lckv::to_valid_utf8(certain) == certain);
    until_stop += certain;
  }
  text += stream.finish();
  until_stop += choice.finish();
  require(text == lckv::decode(vocabulary, ids));
  require(text.compare(0, until_stop.size(), until_stop) == 0);
  require(choice.stop_index() >= 0 || until_stop == text);
}

void load_files(Input& input) {
  std::string bytes;
  while (input.left() > 0) bytes += static_cast<char>(input.take());
  const size_t split = bytes.find(std::string("\0\n", 2));
  lckv::TokenizerFiles files{.sentencepiece_model = bytes.substr(0, split)};
  if (split != std::string::npos) files.config_json = bytes.substr(split + 2);
  const auto tokenizer = lckv::load_tokenizer(files);
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)->encode("One \xE2\x82\xAC, two.");
  if (!ids.ok()) return;
  const std::string text = lckv::decode((*tokenizer)->vocabulary(), *ids);
  require(lckv::to_valid_utf8(text) == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  if (input.take() & 1) {
    stream_text(input);
  } else {
    load_files(input);
  }
  return 0;
}
