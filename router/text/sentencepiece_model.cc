#include "router/text/sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include <exception>

namespace lckv {
namespace {

constexpr char kSpaceMark[] = "\xE2\x96\x81";  // U+2581
constexpr size_t kSpaceMarkBytes = 3;

bool starts_with_mark(const std::string& piece) {
  return piece.compare(0, kSpaceMarkBytes, kSpaceMark) == 0;
}

std::string marks_to_spaces(const std::string& piece) {
  std::string text;
  for (size_t i = 0; i < piece.size();) {
    if (piece.compare(i, kSpaceMarkBytes, kSpaceMark) == 0) {
      text += ' ';
      i += kSpaceMarkBytes;
    } else {
      text += piece[i++];
    }
  }
  return text;
}

// "<0xE2>" is the byte 0xE2.
std::string byte_of(const std::string& piece) {
  if (piece.size() != 6) return std::string();
  return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
}

}  // namespace

struct SentencePieceModel::Processor {
  sentencepiece::SentencePieceProcessor library;
};

SentencePieceModel::SentencePieceModel() : processor_(std::make_unique<Processor>()) {}
SentencePieceModel::~SentencePieceModel() = default;

std::unique_ptr<const SentencePieceModel> SentencePieceModel::parse(const std::string& serialized,
                                                                    std::string& error) {
  std::unique_ptr<SentencePieceModel> model(new SentencePieceModel);
  try {
    const auto status = model->processor_->library.LoadFromSerializedProto(serialized);
    if (!status.ok()) {
      error = status.ToString();
      return nullptr;
    }
    model->probe_spaces();
  } catch (const std::exception& failure) {
    error = failure.what();
    return nullptr;
  }
  return model;
}

bool SentencePieceModel::encode(const std::string& text, std::vector<int>& ids) const {
  return processor_->library.Encode(text, &ids).ok();
}

std::string SentencePieceModel::decode(const std::vector<int>& ids) const {
  std::string text;
  return processor_->library.Decode(ids, &text).ok() ? text : std::string();
}

int SentencePieceModel::num_pieces() const { return processor_->library.GetPieceSize(); }
int SentencePieceModel::bos_id() const { return processor_->library.bos_id(); }
int SentencePieceModel::eos_id() const { return processor_->library.eos_id(); }

SentencePieceModel::Piece SentencePieceModel::piece(int id) const {
  const auto& library = processor_->library;
  if (library.IsControl(id)) return {Kind::kControl, {}};
  if (library.IsUnknown(id)) return {Kind::kUnknown, decode({id})};
  if (library.IsByte(id)) return {Kind::kByte, byte_of(library.IdToPiece(id))};
  return {Kind::kText, marks_to_spaces(library.IdToPiece(id))};
}

// The library does not tell its normaliser's flags; how it decodes does.
void SentencePieceModel::probe_spaces() {
  const auto& library = processor_->library;
  int lone = -1;
  int word = -1;
  for (int id = 0; id < num_pieces() && (lone < 0 || word < 0); ++id) {
    if (library.IsControl(id) || library.IsUnknown(id) || library.IsByte(id)) continue;
    const std::string& piece = library.IdToPiece(id);
    if (!starts_with_mark(piece)) continue;
    if (piece.size() == kSpaceMarkBytes) lone = id;
    if (piece.size() > kSpaceMarkBytes && !starts_with_mark(piece.substr(kSpaceMarkBytes))) {
      word = id;
    }
  }
  if (word < 0) return;
  drops_first_space_ = decode({word}).front() != ' ';
  drops_all_first_spaces_ = drops_first_space_ && lone >= 0 && decode({lone, word}).front() != ' ';
}

}  // namespace lckv
