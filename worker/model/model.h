// Model: what a step asks of a transformer, range by range (worker/kv/pass_plan.h). Behind this
// interface lies everything that knows one; in front of it are rows, units of KV and addresses.
//
// Owner: ModelRunner. Thread: the engine's only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace lckv {

// One unit of KV as the rows of a batch meet it.
struct UnitRows {
  KvLayout layout;                             // of its committed slots
  std::span<const AttentionSegment> segments;  // what the rows may read of it
  // Where an ordinary range owns the unit: row i's new KV goes to slot slots[i] of block blocks[i],
  // before any row reads the unit.
  std::span<const int32_t> blocks;
  std::span<const int32_t> slots;
  // Where a cyclic group owns it: arrays over the group's staging rows. New KV goes to `fresh`,
  // which layers at or above the unit's read; layers below read `read`, what the last walk gave
  // (null where there are none).
  KvRows fresh;
  KvRows read;
};

// Rows of any number of sequences, one after the other, in one range. Behind the last segment's may
// be some of no meaning, whose KV goes nowhere: staged rows and blocks of -1.
struct RangeBatch {
  int32_t range = 0;                     // ordinary[k] is 2k, groups[g] is 2g + 1
  std::span<const int32_t> positions;    // of each row
  float* hidden = nullptr;               // [rows, hidden]: the residual stream, in and out
  std::span<const UnitRows> units;       // by UnitId; filled are those owned or read
  std::span<const int32_t> staged_rows;  // cyclic groups: each row's staging row
  // Rows whose layers that read upward follow the official code's decode; null for none.
  const uint8_t* official_decode = nullptr;
  // Called before each layer, unless the Ops repeat the whole range; may be null.
  const std::function<void()>* before_layer = nullptr;

  int64_t num_rows() const { return static_cast<int64_t>(positions.size()); }
};

// What needs the other ranks of the replica fails where they fail (kernels/collectives.h), naming
// the operation; nothing can be run after that. On success every rank holds the same hidden states
// and logits, byte for byte.
class Model {
 public:
  virtual ~Model() = default;

  virtual int32_t hidden_size() const = 0;
  virtual int32_t vocabulary_size() const = 0;
  virtual int32_t max_rows() const = 0;     // of a batch
  virtual size_t weight_bytes() const = 0;  // on this rank's device

  // hidden[tokens.size(), hidden_size]
  virtual absl::Status embed(std::span<const TokenId> tokens, float* hidden) = 0;
  // All layers of the range over the rows.
  virtual absl::Status run(const RangeBatch& batch) = 0;
  // A first guess of the KV that a walk over the rows will give: the source layers' own projections
  // of the group's input, into `read` of the units that are read upward. `hidden` is only read.
  virtual void guess(const RangeBatch& batch) = 0;
  // logits[rows, vocabulary_size] of rows that ran through all layers.
  virtual absl::Status logits(const float* hidden, int64_t rows, float* logits) = 0;
};

}  // namespace lckv
