// RowChoice: which rows of which range a sequence runs in a step. A pure function of its progress
// and of what is left of the step.
//
// Rows that some walk found settled and that wait for the layers above go first, deepest range
// first; then, from the lowest group up, each group's next walk and the rows that it settles for
// certain, which go on through the layers above in the same step. So a decoding sequence's row runs
// through every range.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/scheduler/range_map.h"
#include "worker/scheduler/sequence.h"

namespace lckv {

// How prompts are walked: what of SchedulerOptions the choice depends on.
struct WalkRules {
  int32_t chunk = 0;  // reproducible mode's; 0: none
  int32_t lookahead = 1;
  bool official_decode = false;
};

// What is left of the step, and what the sequence may take of it.
struct StepRoom {
  int64_t row_layers = 0;
  std::vector<int32_t> range_rows;    // per range
  std::vector<int32_t> staging_rows;  // per group, besides those it holds
};

struct WalkChoice {
  int32_t num_rows = 0;
  WalkEnd end = WalkEnd::kSettle;
  bool official_decode = false;

  // Rows that are settled whatever comes out.
  int32_t num_certain() const;
};

struct RowChoice {
  std::vector<int32_t> ordinary;  // rows per ordinary range
  std::vector<WalkChoice> groups;
  std::vector<int32_t> stage_end;  // per group: staging rows are held up to this position
  int64_t row_layers = 0;
  bool lacks_budget = false;  // a walk that must not be cut did not fit what is left of the step
  std::vector<bool> lacks_staging;  // per group: so with its staging rows

  bool empty() const;
};

RowChoice choose_rows(const Sequence& sequence, const RangeMap& map, const WalkRules& rules,
                      StepRoom room);

// The end of the walk window that position belongs to, in reproducible mode: chunks of prompt rows
// and of generated rows at fixed multiples, cut at the prompt's end.
int32_t chunk_end(const Sequence& sequence, int32_t chunk, int32_t position);

}  // namespace lckv
