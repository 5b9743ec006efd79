#include "tests/support/probed_ops.h"

#include <algorithm>

namespace lckv {

std::unique_ptr<DeviceBuffer> ProbedOps::allocate(size_t bytes) {
  auto buffer = inner_->allocate(bytes);
  fill(buffer->data(), bytes, fill_);
  return buffer;
}

void ProbedOps::fill(std::byte* memory, size_t bytes, uint8_t value) {
  constexpr size_t kPieceBytes = size_t{1} << 20;
  const std::vector<std::byte> piece(std::min(bytes, kPieceBytes), std::byte{value});
  for (size_t done = 0; done < bytes; done += piece.size()) {
    inner_->copy(piece.data(), memory + done, std::min(piece.size(), bytes - done));
  }
}

void ProbedOps::logprobs(std::span<const LogprobArgs> rows, int32_t vocabulary) {
  for (const LogprobArgs& row : rows) {
    auto& kept = logits_.emplace_back(vocabulary);
    inner_->copy(reinterpret_cast<const std::byte*>(row.logits),
                 reinterpret_cast<std::byte*>(kept.data()), kept.size() * sizeof(float));
  }
  inner_->logprobs(rows, vocabulary);
}

}  // namespace lckv
