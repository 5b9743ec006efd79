#include <algorithm>
#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "router/text/sentencepiece_model.h"
#include "router/text/tokenizer.h"
#include "router/text/utf8.h"

namespace lckv {
namespace {

// The Llama tokenizers' values where tokenizer_config.json is silent.
struct SpecialTokens {
  bool add_bos = true;
  bool add_eos = false;
};

absl::StatusOr<SpecialTokens> parse_config(const std::string& json) {
  SpecialTokens result;
  if (json.empty()) return result;
  const auto config = nlohmann::json::parse(json, nullptr, false);
  if (!config.is_object()) {
    return absl::InvalidArgumentError("tokenizer_config.json is no JSON object");
  }
  for (const auto& [name, target] :
       {std::pair{"add_bos_token", &result.add_bos}, std::pair{"add_eos_token", &result.add_eos}}) {
    const auto it = config.find(name);
    if (it == config.end() || it->is_null()) continue;
    if (!it->is_boolean()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer_config.json: ", name, " is neither true nor false"));
    }
    *target = it->get<bool>();
  }
  return result;
}

Vocabulary make_vocabulary(const SentencePieceModel& model) {
  Vocabulary vocabulary;
  vocabulary.drops_first_space = model.drops_first_space();
  vocabulary.drops_all_first_spaces = model.drops_all_first_spaces();
  vocabulary.entries.reserve(static_cast<size_t>(model.num_pieces()));
  for (int id = 0; id < model.num_pieces(); ++id) {
    SentencePieceModel::Piece piece = model.piece(id);
    Vocabulary::Entry& entry = vocabulary.entries.emplace_back();
    switch (piece.kind) {
      case SentencePieceModel::Kind::kControl:
        break;
      case SentencePieceModel::Kind::kByte:
        entry = {Vocabulary::Kind::kByte, std::move(piece.bytes)};
        break;
      case SentencePieceModel::Kind::kUnknown:
        entry = {Vocabulary::Kind::kVerbatim, to_valid_utf8(piece.bytes)};
        break;
      case SentencePieceModel::Kind::kText:
        entry = {Vocabulary::Kind::kText, to_valid_utf8(piece.bytes)};
        break;
    }
    vocabulary.max_entry_bytes = std::max(vocabulary.max_entry_bytes, entry.bytes.size());
  }
  return vocabulary;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<const SentencePieceModel> model,
                         std::vector<uint32_t> first, std::vector<uint32_t> last)
      : model_(std::move(model)),
        vocabulary_(make_vocabulary(*model_)),
        first_(std::move(first)),
        last_(std::move(last)) {}

  absl::StatusOr<std::vector<uint32_t>> encode(const std::string& text) const override {
    std::vector<int> pieces;
    try {
      if (!model_->encode(text, pieces)) return absl::InternalError("the tokenizer failed");
    } catch (const std::exception& failure) {
      return absl::InternalError(absl::StrCat("the tokenizer failed: ", failure.what()));
    }
    std::vector<uint32_t> ids = first_;
    ids.insert(ids.end(), pieces.begin(), pieces.end());
    ids.insert(ids.end(), last_.begin(), last_.end());
    return ids;
  }

  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  const std::unique_ptr<const SentencePieceModel> model_;
  const Vocabulary vocabulary_;
  const std::vector<uint32_t> first_;
  const std::vector<uint32_t> last_;
};

std::vector<uint32_t> special(bool add, int64_t named, int of_model) {
  const int64_t id = named >= 0 ? named : of_model;
  if (!add || id < 0) return {};
  return {static_cast<uint32_t>(id)};
}

}  // namespace

const Vocabulary::Entry& Vocabulary::entry(uint32_t id) const {
  static const Entry kNothing;
  return id < entries.size() ? entries[id] : kNothing;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> load_tokenizer(const TokenizerFiles& files) {
  const absl::StatusOr<SpecialTokens> specials = parse_config(files.config_json);
  if (!specials.ok()) return specials.status();
  std::string error;
  auto model = SentencePieceModel::parse(files.sentencepiece_model, error);
  if (model == nullptr) return absl::InvalidArgumentError(absl::StrCat("tokenizer.model: ", error));
  auto first = special(specials->add_bos, files.bos_token_id, model->bos_id());
  auto last = special(specials->add_eos, files.eos_token_id, model->eos_id());
  return std::make_shared<const SentencePieceTokenizer>(std::move(model), std::move(first),
                                                        std::move(last));
}

}  // namespace lckv
