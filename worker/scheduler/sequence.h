// Sequence: how far one submitted sequence has come, as of the last plan made.
//
// Positions count from 0 over prompt and generated tokens. In each range rows run in the order of
// positions, so that progress is a number per range. Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "worker/kv/prefix_index.h"
#include "worker/kv/sequence_table.h"
#include "worker/scheduler/range_map.h"
#include "worker/scheduler/scheduler.h"
#include "worker/scheduler/sequence_spec.h"
#include "worker/scheduler/step_plan.h"

namespace lckv {

struct GroupProgress {
  int32_t settled = 0;     // first position that no walk planned so far settles for certain
  int32_t walked_end = 0;  // positions from `settled` to here have been walked
  int32_t pass = 1;        // iterated: the pass that runs next, and its next position
  int32_t pass_position = 0;
  int32_t staged_begin = 0;     // position of rows.front()
  std::deque<StagingRow> rows;  // held for positions from staged_begin on

  int32_t staged_end() const { return staged_begin + static_cast<int32_t>(rows.size()); }

  // Statistics; they do not go back when rows are replayed.
  int32_t num_prefill_walks = 0;
  int32_t counted_end = 0;  // positions below have been counted as settled
};

// Blocks of a preempted sequence in the host tier.
struct HostCopy {
  struct Unit {
    int32_t num_trimmed = 0;
    std::vector<HostBlockRef> blocks;
  };
  std::vector<Unit> units;

  int32_t num_blocks() const;
};

struct SequenceFinish {
  FinishReason reason = FinishReason::kEos;
  int32_t matched_stop_token = 0;
};

struct Sequence {
  Sequence(SequenceId id, std::shared_ptr<const SequenceSpec> spec, uint64_t arrival,
           const RangeMap& map, const std::vector<int32_t>* slots_per_block);

  int32_t prompt_size() const { return static_cast<int32_t>(spec->prompt.size()); }
  int32_t num_groups() const { return static_cast<int32_t>(groups.size()); }
  // Positions below have a token, known or named by reference.
  int32_t known_end() const;
  // Positions below are run: the last token generated never is.
  int32_t row_end() const;
  PlanToken token(int32_t position) const;
  // Of [begin, end); all of them are committed.
  std::vector<int32_t> tokens(int32_t begin, int32_t end) const;
  // Generated tokens, those not yet committed included.
  int32_t num_generated() const;

  bool in_prompt(int32_t position) const { return position < prompt_size(); }
  bool iterated() const { return spec->prefill_mode == PrefillMode::kIterated; }
  // Its next row is its newest token's: it takes part in every step with one row.
  bool is_decoding() const;
  // Every row that is known was planned through all ranges.
  bool is_drained() const { return ordinary.back() >= std::min(known_end(), row_end()); }

  // Where its progress goes back to when its staged rows are dropped but its blocks kept.
  int32_t restart_position(int32_t chunk) const;
  // Staged rows are gone already.
  void restart_at(int32_t position);
  // Its blocks below `position` are there without its having run: it starts behind them. No staged
  // rows.
  void start_at(int32_t position);
  // The first position that a range has still to run, all of its blocks kept.
  int32_t next_position(int32_t range) const;

  // What the last generated token means.
  std::optional<SequenceFinish> finish() const;
  int32_t num_prefill_walks() const;

  const SequenceId id;
  const std::shared_ptr<const SequenceSpec> spec;
  const uint64_t arrival;

  std::vector<int32_t> generated;  // committed, spec->resumed included
  std::deque<PlanToken> pending;   // the next ones, sampled by uncommitted plans

  std::optional<SeatId> seat;
  std::vector<int32_t> ordinary;  // per ordinary range: next position to run
  std::vector<GroupProgress> groups;
  SequenceTable table;
  PrefixIndex::Place place;  // how much of it others can take
  std::optional<HostCopy> host;

  uint64_t last_step = 0;         // the last plan that names it
  bool awaits_walk = false;       // that plan holds a walk that settles an unknown number of rows
  int32_t num_partial_walks = 0;  // in a row, that left some of their window unsettled
  int32_t lookahead_limit = 0;    // from how the last walk settled; 0: none
  int32_t num_scored = 1;         // prompt positions below have their logprob planned
  int32_t num_counted = 0;        // prompt rows counted as run, in a model without groups
  int32_t blocks_held = 0;        // when it was preempted: it comes back when as many are free

  bool paused = false;
  bool started = false;
  bool is_done_before = false;  // nothing to generate: an uncommitted plan ends it
  int32_t num_preemptions = 0;
  int32_t num_cached = 0;  // prompt tokens whose blocks were there when it started
};

// Whether `left` goes before `right` where they compete for what is held already.
bool outranks(const Sequence& left, const Sequence& right);

}  // namespace lckv
