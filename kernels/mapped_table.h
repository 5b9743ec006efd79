// An embedding table that stays where the checkpoint has it: of backends whose memory is the
// host's.
#pragma once

#include "kernels/ops.h"

namespace lckv {

class MappedTable final : public EmbeddingTable {
 public:
  explicit MappedTable(const WeightSource& source) : source_(source) {}
  int64_t n() const override { return source_.n; }
  int64_t k() const override { return source_.k; }
  size_t bytes() const override { return 0; }
  bool reads_source() const override { return true; }
  const WeightSource& source() const { return source_; }

 private:
  const WeightSource source_;
};

}  // namespace lckv
