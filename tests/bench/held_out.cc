// SentencePiece's header declares an absl::string_view of its own: Abseil must not be included
// here.
#include "tests/bench/held_out.h"

#include <fstream>
#include <iterator>

#include "sentencepiece_processor.h"

namespace lckv {

std::vector<int32_t> held_out_tokens(const std::string& folder, size_t count) {
  std::ifstream file(folder + "/eval.txt");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  sentencepiece::SentencePieceProcessor tokenizer;
  if (!tokenizer.Load(folder + "/tokenizer.model").ok()) return {};
  std::vector<int> ids = {tokenizer.bos_id()};
  for (const int id : tokenizer.EncodeAsIds(text.substr(0, 16384))) ids.push_back(id);
  if (ids.size() < count) return {};
  return {ids.begin(), ids.begin() + static_cast<ptrdiff_t>(count)};
}

}  // namespace lckv
