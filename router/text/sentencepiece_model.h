// SentencePiece behind types that do not clash: its public header declares names of Abseil
// differently from Abseil's own headers, so no file may include both.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace lckv {

// One parsed tokenizer.model. Immutable, any thread.
class SentencePieceModel {
 public:
  enum class Kind { kText, kByte, kControl, kUnknown };
  struct Piece {
    Kind kind = Kind::kText;
    std::string bytes;  // of its text, U+2581 replaced by a space; of kByte the one byte
  };

  // Null where `serialized` is no such model; `error` then says why.
  static std::unique_ptr<const SentencePieceModel> parse(const std::string& serialized,
                                                         std::string& error);
  ~SentencePieceModel();

  // False on a failure of the library.
  bool encode(const std::string& text, std::vector<int>& ids) const;
  // Of all ids at once; the reference for streaming.
  std::string decode(const std::vector<int>& ids) const;

  int num_pieces() const;
  Piece piece(int id) const;
  int bos_id() const;  // negative: none
  int eos_id() const;
  bool drops_first_space() const { return drops_first_space_; }
  bool drops_all_first_spaces() const { return drops_all_first_spaces_; }

 private:
  struct Processor;
  SentencePieceModel();
  void probe_spaces();

  std::unique_ptr<Processor> processor_;
  bool drops_first_space_ = false;
  bool drops_all_first_spaces_ = false;
};

}  // namespace lckv
