// CheckpointFiles: the small files of a Hugging Face folder, read whole, and a fingerprint of it
// all.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace lckv {

class WeightStore;

// Empty where the folder has no such file.
struct CheckpointFiles {
  std::string config;             // config.json; always there
  std::string generation_config;  // generation_config.json
  std::string tokenizer_model;   // tokenizer.model (SentencePiece); without it: served by token ids
  std::string tokenizer_config;  // tokenizer_config.json
  std::string chat_template;  // chat_template.jinja, else `chat_template` of tokenizer_config.json
};

// `path` is the folder. Errors name the file: NotFound (no folder, no config.json), InvalidArgument
// (larger than a file of its kind can be), Unavailable (cannot be read).
absl::StatusOr<CheckpointFiles> read_checkpoint_files(const std::string& path);

// Where a fingerprint looks into a tensor of that many bytes: [first, second) each, ascending,
// which may overlap.
std::vector<std::pair<uint64_t, uint64_t>> fingerprint_samples(uint64_t bytes);

// 32 hex digits that are equal for equal content, wherever it lies: FNV-1a (128 bit) over the files
// above, then name, dtype, shape and sampled bytes (the first 1024, and 1024 at 1/3, 2/3 and at the
// end) of every tensor of the model. Weights are sampled because reading all of a checkpoint takes
// as long as loading it.
std::string content_fingerprint(const CheckpointFiles& files, const WeightStore& weights);

}  // namespace lckv
