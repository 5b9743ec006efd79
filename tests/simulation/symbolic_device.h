// SymbolicDevice: executes StepPlans on values that say whose they are.
//
// Every slot, staging row and token holds (sequence, position, hash of the tokens up to there).
// Slots may be another sequence's of the same tokens where both may share them; then nobody may
// write them.
// Whatever a row reads is compared with what the layer map says it must see; the first difference
// is kept as the error. Sampled tokens are a function of that hash, so any schedule must give the
// same stream.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/simulation/simulated_map.h"
#include "tests/simulation/symbolic_tokens.h"
#include "worker/kv/mirrored_tables.h"
#include "worker/scheduler/scheduler.h"
#include "worker/scheduler/step_plan.h"

namespace lckv::simulation {

struct Content {
  uint64_t sequence = 0;
  // Equal where one sequence may read what another wrote, as far as it is not about the tokens.
  uint64_t kind = 0;
  int32_t position = -1;
  uint64_t hash = 0;
  friend bool operator==(const Content&, const Content&) = default;
  // Whether reading `seen` is as good as reading this.
  bool is_as(const Content& seen) const {
    return kind == seen.kind && position == seen.position && hash == seen.hash;
  }
};

class SymbolicDevice {
 public:
  SymbolicDevice(const SimulatedMap& map, const SchedulerOptions& options, uint64_t seed);

  StepResult run(const StepPlan& plan);
  // Empty while all was right.
  const std::string& error() const { return error_; }

 private:
  struct Row {
    Content input;
    bool has_output = false;
    int32_t num_walks = 0;
  };
  struct Seat {
    uint64_t sequence = 0;
    std::shared_ptr<const SequenceSpec> spec;
    uint64_t prompt_kind = 0;
    uint64_t generated_kind = 0;
    std::vector<uint64_t> hashes;  // of the tokens fed, by position
    // By range (ordinary k: 2k, group g: 2g + 1); -1 until its first row since the seat was opened.
    std::vector<int32_t> next_position;
  };

  struct Users {
    int32_t num_tables = 0;     // that the block is in
    uint64_t shared_since = 0;  // the step in which it came to a second one
  };

  void fail(const StepPlan& plan, const std::string& what);
  uint64_t kind_of(const Seat& seat, bool in_prompt) const;
  static Content content(const Seat& seat, int32_t position);
  void copy_blocks(const StepPlan& plan);
  void change_seats(const StepPlan& plan);
  void change_tables(const StepPlan& plan);
  void run_ordinary(const StepPlan& plan, int32_t index);
  void run_walks(const StepPlan& plan, int32_t group, std::vector<int32_t>& settled);
  void run_walk(const StepPlan& plan, int32_t group, const WalkSegment& segment,
                std::vector<int32_t>& settled);
  void finish_walk(const StepPlan& plan, int32_t group, const WalkSegment& segment,
                   int32_t num_settled);
  void feed(const StepPlan& plan, Seat& seat, int32_t position, const PlanToken& source);
  void check_official(const StepPlan& plan, const Seat& seat, const WalkSegment& segment);
  void check_passes(const StepPlan& plan, int32_t group, const WalkSegment& segment);
  void check_window(const StepPlan& plan, const Seat& seat, const WalkSegment& segment);
  void check_history(const StepPlan& plan, const Seat& seat, SeatId id, int32_t layer,
                     int32_t position, int32_t committed_end);
  void write_slot(const StepPlan& plan, SeatId seat, int32_t unit, const Content& content);
  Content* slot(SeatId seat, int32_t unit, int32_t position);
  SampleResult sample(const StepPlan& plan, const SampleRow& row);

  const SimulatedMap& map_;
  const SchedulerOptions options_;
  std::mt19937_64 random_;
  std::string error_;
  uint64_t last_step_ = 0;
  MirroredTables tables_;
  std::map<int32_t, Users> users_;  // by block
  std::vector<std::vector<Content>> blocks_;
  std::vector<std::vector<Content>> host_blocks_;
  std::vector<std::vector<Row>> staging_;  // [group][row]
  std::vector<Seat> seats_;
  std::vector<Content> last_rows_;                    // of ordinary[G], this step
  std::map<uint64_t, std::vector<int32_t>> sampled_;  // by step
};

}  // namespace lckv::simulation
