// StepPlan: what one step does, as an immutable value; StepResult: what came of it.
//
// A model's layers are cut into ranges (worker/kv/pass_plan.h): ordinary[0], groups[0],
// ordinary[1], ... groups[G-1], ordinary[G], some of the ordinary ones empty. A step runs them in
// this order, each at most once, each with its own rows. Hidden states cross from an ordinary range
// to the next group and back through that group's staging rows: ordinary[g] writes the rows'
// `input`, a walk of groups[g] reads it and writes `output`, ordinary[g+1] reads that, in the same
// step or in a later one.
//
// Order within a step: block copies to the host, copies to the device, seats closed, seats opened,
// table changes, then the ranges, then sampling. Tables are mirrored: a plan carries only their
// changes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "worker/kv/ids.h"
#include "worker/scheduler/sequence_spec.h"

namespace lckv {

// A part of one of the plan's flat vectors.
struct PlanSpan {
  int32_t begin = 0;
  int32_t count = 0;
};

// A row's token: known, or what an earlier plan's sample `index` will give (`step` > 0), which may
// not have been committed when this plan was made.
struct PlanToken {
  int32_t token = 0;
  uint64_t step = 0;
  int32_t sample = 0;
};

// A sequence takes a seat. `generated` are its tokens so far, `spec->resumed` included: what
// penalties count and from where positions go on.
struct SeatOpening {
  SeatId seat{};
  SequenceId sequence{};
  std::shared_ptr<const SequenceSpec> spec;
  std::vector<int32_t> generated;
};

struct TableAppend {
  SeatId seat{};
  UnitId unit{};
  BlockId block{};
};

// The first `num_blocks` blocks of the table leave it: no reader's window reaches them any more. On
// a seat that the same plan opens: so many blocks had left before the sequence was copied to the
// host, and what is appended comes after them (MirroredTables::trim does both).
struct TableTrim {
  SeatId seat{};
  UnitId unit{};
  int32_t num_blocks = 0;
};

struct BlockCopy {
  BlockId device{};
  HostBlockId host{};
};

// Consecutive rows of one sequence in an ordinary range.
struct OrdinarySegment {
  SeatId seat{};
  int32_t first_position = 0;
  int32_t num_rows = 0;
  PlanSpan tokens;   // range 0 only: in StepPlan::tokens, num_rows of them
  PlanSpan inputs;   // other ranges: staging rows of the group before (their `output` is read)
  PlanSpan outputs;  // all but the last: staging rows of the group after (`input` is written)
};

// What becomes of a walk's rows.
enum class WalkEnd : uint8_t {
  // Row 0 is settled, and each further one whose predecessors all came out as they had been read
  // (design: bitwise at tolerance 0, else by RMS over K and V per cached layer). Settled rows are
  // committed to slots; the others' new values become what the next walk reads, and what their
  // slots hold is open.
  kSettle,
  kPass,     // iterated: not the last pass; nothing is promoted before the pass's last chunk
  kPassEnd,  // iterated: the pass's last chunk: all staged rows' new values become what is read
  kCommit,   // every row is settled and committed (an iterated prompt's last pass)
};

// One walk of a sequence over a cyclic group: rows [first_position, first_position + num_rows).
struct WalkSegment {
  SeatId seat{};
  int32_t first_position = 0;
  int32_t num_rows = 0;
  // Staging rows of positions [staged_position, staged_position + staged.count), in order; they
  // hold the walk's rows and, in iterated mode, the whole prompt's. Positions below are committed
  // slots.
  int32_t staged_position = 0;
  PlanSpan staged;
  // The last `num_new` rows have never been walked: their first guess is made before the walk, from
  // the source layers' own projections of the group's input (`warm`), else zeros.
  int32_t num_new = 0;
  bool warm = false;
  float tolerance = 0.0F;
  // Rows follow the official code's decode (ARCHITECTURE.md, "Compatibility").
  bool official_decode = false;
  WalkEnd end = WalkEnd::kSettle;
};

// A row of ordinary[G] whose logits are needed.
struct SampleRow {
  enum class Kind : uint8_t {
    kSample,        // draw the next token; it is generated token number `index`
    kPromptLogprob  // only the log-probability of `target`, the next prompt token
  };
  Kind kind = Kind::kSample;
  SeatId seat{};
  int32_t row = 0;    // in ordinary[G]'s batch: segments in order, rows in order
  int32_t index = 0;  // of the generated token, 0 first; for prompts: position of `target`
  int32_t target = 0;
  int32_t num_logprobs = -1;  // -1: none; 0: own only
};

struct RangeRows {
  std::vector<OrdinarySegment> segments;
  int32_t num_rows = 0;
};

struct GroupRows {
  std::vector<WalkSegment> segments;
  int32_t num_rows = 0;
};

struct StepPlan {
  uint64_t step = 0;  // 1 first
  std::vector<BlockCopy> to_host;
  std::vector<BlockCopy> to_device;
  std::vector<SeatId> closed;
  std::vector<SeatOpening> opened;
  std::vector<TableTrim> trims;
  std::vector<TableAppend> appends;
  std::vector<PlanToken> tokens;
  std::vector<StagingRow> staging;  // what the spans of all segments point into
  std::vector<RangeRows> ordinary;  // G + 1
  std::vector<GroupRows> groups;    // G
  std::vector<SampleRow> samples;
  int64_t num_row_layers = 0;  // rows times the layers they run: what the budget counts
};

struct TokenLogprob {
  float own = 0.0F;
  std::vector<int32_t> top_ids;  // most likely first
  std::vector<float> top_logprobs;
};

struct SampleResult {
  int32_t token = 0;  // kPromptLogprob: the target
  std::optional<TokenLogprob> logprob;
};

struct StepResult {
  uint64_t step = 0;
  std::vector<SampleResult> samples;  // one per StepPlan::samples
  // [group][segment]: rows settled, from the segment's first one; 0 where its end is kPass or
  // kPassEnd.
  std::vector<std::vector<int32_t>> settled_rows;
};

}  // namespace lckv
