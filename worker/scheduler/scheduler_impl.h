// Scheduler::Impl: the state behind Scheduler. Planning is in planning.cc, memory pressure in
// preemption.cc, shared beginnings in prefix_reuse.cc, commits in committing.cc, the rest in
// scheduler.cc.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "worker/scheduler/kv_memory.h"
#include "worker/scheduler/plan_builder.h"
#include "worker/scheduler/range_map.h"
#include "worker/scheduler/request_queue.h"
#include "worker/scheduler/row_choice.h"
#include "worker/scheduler/scheduler.h"
#include "worker/scheduler/sequence.h"

namespace lckv {

class Scheduler::Impl {
 public:
  Impl(SchedulerOptions options, const PassPlan& passes);
  ~Impl();

  absl::Status submit(SequenceId id, std::shared_ptr<const SequenceSpec> spec);
  void cancel(SequenceId id);
  void set_paused(SequenceId id, bool paused);
  std::optional<StepPlan> plan();
  std::vector<SequenceEvent> commit(const StepResult& result);
  bool has_work() const;
  SchedulerLoad load() const;

 private:
  // One plan in the making.
  struct Planning {
    PlanBuilder builder;
    int32_t num_prompts = 0;  // that are or could be prefilled side by side
    int32_t num_decoding_rows = 0;
    // Memory that is to change hands is held by sequences that uncommitted plans name: no more
    // rows.
    bool blocked = false;
    bool evicted = false;  // for a sequence that runs: nobody is admitted
    // Per group: somebody waits for staging rows there, others take but the one they need.
    std::vector<bool> staging_short;
    std::optional<SequenceId> starved;  // the first that memory or budget was too short for
  };

  // scheduler.cc
  Sequence* find(SequenceId id);
  absl::Status check_fits(const SequenceSpec& spec) const;
  void end(Sequence& sequence);
  SeatId unseat(Sequence& sequence);
  void give_staging_back(Sequence& sequence);
  int32_t chunk() const { return options_.reproducible ? options_.prefill_lookahead : 0; }
  bool in_flight(const Sequence& sequence) const {
    return sequence.last_step > memory_.deferred.committed();
  }

  // planning.cc
  Planning begin_plan();
  std::vector<Sequence*> running_order() const;
  bool takes_part(const Sequence& sequence) const;
  void extend(Planning& planning, Sequence& sequence);
  void admit(Planning& planning);
  bool admit_one(Planning& planning, Sequence& sequence);
  bool make_room_to_start(Planning& planning, const Sequence& sequence, const RowChoice& choice);
  void add_rows(Planning& planning, Sequence& sequence, const RowChoice& choice);
  RowChoice choose(Planning& planning, const Sequence& sequence);
  WalkRules walk_rules(const Planning& planning, const Sequence& sequence) const;
  StepRoom step_room(const Planning& planning, const Sequence& sequence) const;

  // prefix_reuse.cc
  bool shares_prefixes(const Sequence& sequence) const;
  // Positions below are the same in every sequence of these tokens.
  int32_t shareable_end(const Sequence& sequence) const;
  // Of a sequence that waits: puts what others have run of its beginning into its table and starts
  // it behind it.
  void take_prefix(Sequence& sequence);
  // Of one that waits and has nothing in the host tier: it has taken nothing.
  void begin_anew(Sequence& sequence);
  // Others may take what the plans made so far have run of it.
  void offer_prefix(Sequence& sequence);
  void count_prefix(Sequence& sequence);

  // preemption.cc
  bool make_room(Planning& planning, const Sequence& needs, int32_t num_blocks);
  // Blocks that are free once all of them have given way.
  int32_t num_obtainable(const std::vector<Sequence*>& victims) const;
  std::vector<Sequence*> victims(const Sequence& needs) const;
  // Preempts one paused sequence, the last in rank, that no uncommitted plan names.
  bool evict_paused(Planning& planning);
  // Where no seat is free for what waits at a higher priority than the last in rank, that gives
  // way; and so on with the next.
  void vacate_seats(Planning& planning);
  // Where nobody goes on and nothing will be freed, the last in rank gives way to the first.
  void break_deadlock(Planning& planning);
  void preempt(Planning& planning, Sequence& victim);

  // committing.cc
  void commit_walks(const PlanRecord& record, const StepResult& result);
  void commit_walk(const PlanRecord::Walk& walk, int32_t group, int32_t num_settled);
  void count_walk(const PlanRecord::Walk& walk, Sequence& sequence, int32_t group,
                  int32_t num_settled);
  void commit_samples(const PlanRecord& record, const StepResult& result,
                      std::vector<SequenceEvent>& events);
  void finish(Sequence& sequence, const SequenceFinish& finish, std::vector<SequenceEvent>& events);

  const SchedulerOptions options_;
  const RangeMap map_;
  KvMemory memory_;
  RequestQueue queue_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> seated_;  // first in rank first
  std::vector<SeatId> free_seats_;
  std::vector<SeatId> closings_;         // seats whose sequence ended: the next plan closes them
  std::vector<SequenceId> done_before_;  // nothing to generate: the next plan ends them
  std::deque<PlanRecord> uncommitted_;
  std::optional<SequenceId> starved_;  // goes first in the next plan
  uint64_t num_plans_ = 0;
  uint64_t num_submitted_ = 0;
  SchedulerLoad totals_;  // only what is counted since the start
};

}  // namespace lckv
