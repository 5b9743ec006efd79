// Attention alone, over sequences whose histories lie in blocks all over device memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/ops.h"

namespace lckv::bench {

struct AttentionShape {
  int32_t num_sequences = 1;
  int32_t context = 1;   // tokens of each
  int32_t num_rows = 1;  // of each, its last ones
  int32_t kv_heads = 1;
  int32_t heads_per_kv = 1;
  int32_t head_dim = 64;
};

class AttentionLoad {
 public:
  // `ops` outlives it.
  AttentionLoad(Ops& ops, const AttentionShape& shape);
  AttentionLoad(const AttentionLoad&) = delete;
  AttentionLoad& operator=(const AttentionLoad&) = delete;

  void run() { ops_.attention(args_); }
  double kv_bytes() const;    // of all sequences, each once
  double operations() const;  // of what rows see

 private:
  void add_sequence(int32_t index);

  Ops& ops_;
  const AttentionShape shape_;
  const int32_t blocks_per_sequence_;
  std::unique_ptr<DeviceBuffer> kv_;
  std::unique_ptr<DeviceBuffer> q_;
  std::unique_ptr<DeviceBuffer> out_;
  std::vector<int32_t> blocks_;  // [num_sequences, blocks_per_sequence]
  std::vector<int32_t> slot_positions_;
  std::vector<int32_t> positions_;  // of rows
  std::vector<AttentionSegment> segments_;
  AttentionArgs args_;
};

}  // namespace lckv::bench
