#include "router/fleet/model_info.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/message_differencer.h"

namespace lckv {
namespace {

using google::protobuf::util::MessageDifferencer;

bool same_tokenizer_files(const internal::v1::Hello& a, const internal::v1::Hello& b) {
  return a.has_tokenizer() == b.has_tokenizer() &&
         a.tokenizer().sentencepiece_model() == b.tokenizer().sentencepiece_model() &&
         a.tokenizer().config_json() == b.tokenizer().config_json() &&
         a.has_bos_token_id() == b.has_bos_token_id() && a.bos_token_id() == b.bos_token_id();
}

// The files are megabytes, and this is asked for every replica and call.
bool same_tokenizer(const ModelInfo& a, const ModelInfo& b) {
  return (a.tokenizer != nullptr && a.tokenizer == b.tokenizer) ||
         same_tokenizer_files(a.hello, b.hello);
}

bool same_eos(const internal::v1::Hello& a, const internal::v1::Hello& b) {
  return std::equal(a.eos_token_ids().begin(), a.eos_token_ids().end(), b.eos_token_ids().begin(),
                    b.eos_token_ids().end());
}

}  // namespace

uint32_t ModelInfo::max_logprobs() const {
  return hello.max_logprobs() < 0 ? hello.vocabulary_size()
                                  : static_cast<uint32_t>(hello.max_logprobs());
}

absl::StatusOr<std::shared_ptr<const ModelInfo>> make_model_info(internal::v1::Hello hello,
                                                                 const ModelInfo* known) {
  if (hello.replica_id().empty() || hello.model().empty() || hello.vocabulary_size() == 0 ||
      hello.max_context_tokens() == 0) {
    return absl::InvalidArgumentError(
        "the worker names no replica, model, vocabulary or context in its Hello");
  }
  auto info = std::make_shared<ModelInfo>();
  info->hello = std::move(hello);
  if (info->hello.has_tokenizer()) {
    if (known != nullptr && same_tokenizer_files(known->hello, info->hello) &&
        same_eos(known->hello, info->hello)) {
      info->tokenizer = known->tokenizer;
    } else {
      TokenizerFiles files{.sentencepiece_model = info->hello.tokenizer().sentencepiece_model(),
                           .config_json = info->hello.tokenizer().config_json()};
      if (info->hello.has_bos_token_id()) files.bos_token_id = info->hello.bos_token_id();
      if (!info->hello.eos_token_ids().empty()) files.eos_token_id = info->hello.eos_token_ids(0);
      auto tokenizer = load_tokenizer(files);
      if (!tokenizer.ok()) return tokenizer.status();
      info->tokenizer = *std::move(tokenizer);
    }
  }
  return info;
}

bool takes_same_requests(const ModelInfo& a, const ModelInfo& b) {
  if (&a == &b) return true;
  return a.hello.model() == b.hello.model() &&
         a.hello.vocabulary_size() == b.hello.vocabulary_size() &&
         a.hello.max_context_tokens() == b.hello.max_context_tokens() &&
         a.hello.max_logprobs() == b.hello.max_logprobs() && same_eos(a.hello, b.hello) &&
         MessageDifferencer::Equals(a.hello.generation_defaults(), b.hello.generation_defaults()) &&
         same_tokenizer(a, b);
}

}  // namespace lckv
