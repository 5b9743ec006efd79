// PlanBuilder: puts one StepPlan together, sequence by sequence, and moves each sequence's progress
// on.
//
// What is named here was chosen before: rows by choose_rows, blocks are known to be free. Lives for
// one plan, on the scheduler's thread.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/scheduler/kv_memory.h"
#include "worker/scheduler/range_map.h"
#include "worker/scheduler/row_choice.h"
#include "worker/scheduler/sequence.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

// What the scheduler remembers of a plan until its commit.
struct PlanRecord {
  struct Walk {
    SequenceId sequence{};
    int32_t first_position = 0;
    int32_t num_rows = 0;
    WalkEnd end = WalkEnd::kSettle;
  };
  struct Sample {
    SequenceId sequence{};
    SampleRow::Kind kind = SampleRow::Kind::kSample;
    int32_t index = 0;
  };
  uint64_t step = 0;
  std::vector<SequenceId> started;       // took a seat for the first time
  std::vector<Sample> samples;           // as StepPlan::samples
  std::vector<std::vector<Walk>> walks;  // as StepPlan::groups
  std::vector<SequenceId> scored;        // asked for no token, and their prompt's last row ran
  std::vector<SequenceId> done_before;   // nothing was left to generate when they were submitted
};

struct BuilderOptions {
  uint64_t step = 0;
  int64_t max_row_layers = 0;
  int32_t max_batched_rows = 0;
  float prefill_tolerance = 0.0F;
};

class PlanBuilder {
 public:
  PlanBuilder(const BuilderOptions& options, const RangeMap& map, KvMemory& memory);

  void close(SeatId seat) { plan_.closed.push_back(seat); }
  void done_before(SequenceId sequence) { record_.done_before.push_back(sequence); }
  // Seats it, with the blocks that its table holds already, or those of the host tier.
  void open(Sequence& sequence, SeatId seat);
  // Copies the blocks below the position it restarts at to the host tier.
  void copy_to_host(Sequence& sequence);
  // Drops blocks that none of its rows can see any more.
  void trim(Sequence& sequence, int32_t chunk);
  void add(Sequence& sequence, const RowChoice& choice);

  // Of the range's rows and the step's row-layers, what is left.
  int64_t row_layers_left() const { return row_layers_left_; }
  const std::vector<int32_t>& range_rows_left() const { return range_rows_left_; }
  // Staging rows that are free from the next plan on.
  int32_t num_released(int32_t group) const;
  uint64_t step() const { return plan_.step; }
  bool empty() const;

  // Ends the plan: staging rows whose last reader it holds are free from the next one on.
  std::pair<StepPlan, PlanRecord> finish();

 private:
  void copy_to_device(Sequence& sequence);
  void append_blocks(Sequence& sequence, const RowChoice& choice);
  void take_staging(Sequence& sequence, const RowChoice& choice);
  void add_ordinary(Sequence& sequence, int32_t index, int32_t num_rows);
  void add_walk(Sequence& sequence, int32_t index, const WalkChoice& choice);
  void advance(Sequence& sequence, GroupProgress& group, const WalkChoice& choice);
  void add_samples(Sequence& sequence, const OrdinarySegment& segment, int32_t first_row);
  void add_sample(Sequence& sequence, const SampleRow& sample);
  void release_staging(Sequence& sequence);
  PlanSpan staging_span(const GroupProgress& group, int32_t first_position, int32_t num_rows);

  const BuilderOptions options_;
  const RangeMap& map_;
  KvMemory& memory_;
  StepPlan plan_;
  PlanRecord record_;
  int64_t row_layers_left_;
  std::vector<int32_t> range_rows_left_;
  std::vector<std::pair<int32_t, StagingRow>> released_;
};

// Blocks that the sequence lacks to run the chosen rows, on top of `host` ones if it has them.
int32_t num_missing_blocks(const Sequence& sequence, const RowChoice& choice, const RangeMap& map,
                           const std::vector<int32_t>& slots_per_block);

}  // namespace lckv
