#include "tests/support/probed_ops.h"

#include <cstring>

namespace lckv {

std::unique_ptr<DeviceBuffer> ProbedOps::allocate(size_t bytes) {
  auto buffer = inner_->allocate(bytes);
  std::memset(buffer->data(), fill_, bytes);
  return buffer;
}

void ProbedOps::logprobs(const float* logits, int32_t vocabulary, std::span<const int32_t> ids,
                         float* own, int32_t num_top, TopEntry* top) {
  logits_.emplace_back(logits, logits + vocabulary);
  inner_->logprobs(logits, vocabulary, ids, own, num_top, top);
}

}  // namespace lckv
