#include "tests/simulation/simulation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/simulation/simulated_load.h"

namespace lckv::simulation {
namespace {

constexpr int32_t kMaxSteps = 60000;

bool contains(const std::vector<int32_t>& values, int32_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

class Run {
 public:
  Run(uint64_t seed, Defect defect, SimulatedLoad load)
      : random_(seed ^ 0x70A5ULL),
        defect_(defect),
        map_(std::move(load.map)),
        options_(load.options),
        last_act_(load.last_act),
        device_(map_, options_, seed ^ 0x5EEDULL),
        scheduler_(scheduler_options(), map_.passes),
        streams_(std::move(load.streams)) {}

  std::string to_end() {
    for (int32_t turn = 0; turn < kMaxSteps; ++turn) {
      act(turn);
      const bool waits = turn <= last_act_ || scheduler_.has_work() || !in_flight_.empty();
      if (!waits) return at_end();
      turn_once(turn);
      if (!error_.empty()) return absl::StrCat("map ", map_.name, ": ", error_);
    }
    return absl::StrCat("map ", map_.name, ": no end after ", kMaxSteps, " turns");
  }

  SchedulerLoad load() const { return scheduler_.load(); }

 private:
  struct InFlight {
    StepPlan plan;
    std::set<int32_t> blocks;  // what it names
  };

  SchedulerOptions scheduler_options() const {
    SchedulerOptions options = options_;
    if (defect_ == Defect::kSharedInexact) options.prefill_tolerance = 0.0F;
    return options;
  }

  int32_t below(int32_t bound) {
    return static_cast<int32_t>(random_() % static_cast<uint64_t>(bound));
  }
  bool one_in(int32_t n) { return below(n) == 0; }

  void act(int32_t turn) {
    for (size_t i = 0; i < streams_.size(); ++i) {
      Stream& stream = streams_[i];
      const SequenceId id{i + 1};
      if (stream.submit_at == turn) {
        stream.submitted = true;
        auto spec = std::make_shared<SequenceSpec>(*stream.spec);
        if (defect_ == Defect::kSharedAcrossTenants) spec->tenant = spec->prefix_salt = "";
        const absl::Status status = scheduler_.submit(id, std::move(spec), time_at(turn));
        if (!status.ok()) error_ = absl::StrCat("refused: ", status.ToString());
      }
      if (stream.pause_at == turn) scheduler_.pause(id);
      if (stream.unpause_at == turn) scheduler_.unpause(id);
      if (stream.cancel_at == turn && !stream.finished) {
        stream.cancelled = true;
        scheduler_.cancel(id);
      }
    }
  }

  static absl::Time time_at(int32_t turn) { return absl::UnixEpoch() + absl::Milliseconds(turn); }

  // Plans until as many are out as may be, or, at random, runs and commits the oldest.
  void turn_once(int32_t turn) {
    const bool full = static_cast<int32_t>(in_flight_.size()) >= options_.max_uncommitted_plans;
    if (!full && !(in_flight_.empty() ? false : one_in(3))) {
      std::optional<StepPlan> plan = scheduler_.plan(time_at(turn));
      if (plan.has_value()) {
        check_plan(*plan);
        return;
      }
      if (in_flight_.empty() && scheduler_.has_work()) error_ = "there is work, but no plan";
    }
    if (in_flight_.empty()) return;
    if (defect_ == Defect::kStaleOrder && in_flight_.size() > 1) {
      std::swap(in_flight_[0], in_flight_[1]);
    }
    StepPlan plan = std::move(in_flight_.front().plan);
    if (defect_ == Defect::kEarlyRelease) {
      ghost_ = std::move(in_flight_.front().blocks);
    }
    in_flight_.pop_front();
    plan = planted(std::move(plan));
    StepResult result = device_.run(plan);
    if (error_.empty()) error_ = device_.error();
    if (!error_.empty()) return;
    if (defect_ == Defect::kUnsettledRow) claim_one_more(plan, result);
    for (const SequenceEvent& event : scheduler_.commit(result, time_at(turn))) take(event);
  }

  void check_plan(const StepPlan& plan) {
    InFlight next{.plan = plan};
    int64_t row_layers = 0;
    const auto range = [&](const auto& rows, int32_t index) {
      if (rows.num_rows > options_.max_batched_rows) error_ = "a range has too many rows";
      row_layers += static_cast<int64_t>(rows.num_rows) *
                    static_cast<int64_t>(map_.range_layers[index].size());
      for (const auto& segment : rows.segments) {
        for (const auto& [unit, blocks] : tables_[raw(segment.seat)]) {
          next.blocks.insert(blocks.begin(), blocks.end());
        }
      }
    };
    for (const SeatId seat : plan.closed) close(raw(seat));
    const std::vector<bool> is_fresh = fresh_appends(plan);
    for (const TableTrim& trim : plan.trims) {
      auto& blocks = tables_[raw(trim.seat)][raw(trim.unit)];
      blocks.erase(blocks.begin(),
                   blocks.begin() + std::min<int64_t>(trim.num_blocks, std::ssize(blocks)));
    }
    for (size_t i = 0; i < plan.appends.size(); ++i) {
      const TableAppend& append = plan.appends[i];
      const int32_t block = raw(append.block);
      bool named = ghost_.contains(block);
      for (const InFlight& other : in_flight_) named = named || other.blocks.contains(block);
      if (named && is_fresh[i])
        error_ = absl::StrCat("block ", block, " is reused before its plan's commit");
      tables_[raw(append.seat)][raw(append.unit)].push_back(block);
      next.blocks.insert(block);
    }
    for (int32_t k = 0; k <= map_.num_groups; ++k) {
      range(plan.ordinary[k], 2 * k);
      if (k < map_.num_groups) range(plan.groups[k], 2 * k + 1);
    }
    if (row_layers > options_.max_row_layers) error_ = "the step's budget is exceeded";
    if (row_layers != plan.num_row_layers) error_ = "num_row_layers";
    if (defect_ == Defect::kSharedFreedEarly) reuse_freed(next.plan, is_fresh);
    in_flight_.push_back(std::move(next));
  }

  // Which of the plan's appends are to be written, by it or later: all but those of a beginning
  // that was run already, which lie below the first row of a seat that the plan opens.
  std::vector<bool> fresh_appends(const StepPlan& plan) const {
    std::map<int32_t, int32_t> first_row;  // by seat
    for (const SeatOpening& opening : plan.opened) first_row[raw(opening.seat)] = 0;
    for (const OrdinarySegment& segment : plan.ordinary.front().segments) {
      const auto opened = first_row.find(raw(segment.seat));
      if (opened != first_row.end()) opened->second = segment.first_position;
    }
    std::set<int32_t> copied;
    for (const BlockCopy& copy : plan.to_device) copied.insert(raw(copy.device));
    std::map<std::pair<SeatId, UnitId>, int32_t> num_blocks;  // of seats opened
    for (const TableTrim& trim : plan.trims) num_blocks[{trim.seat, trim.unit}] = trim.num_blocks;
    std::vector<bool> is_fresh;
    for (const TableAppend& append : plan.appends) {
      const auto opened = first_row.find(raw(append.seat));
      const int32_t end =
          ++num_blocks[{append.seat, append.unit}] * options_.slots_per_block[raw(append.unit)];
      const bool below_rows = opened != first_row.end() && end <= opened->second;
      is_fresh.push_back(!below_rows || copied.contains(raw(append.block)));
    }
    return is_fresh;
  }

  bool is_held(int32_t block) const {
    for (const auto& [seat, units] : tables_) {
      for (const auto& [unit, blocks] : units) {
        if (contains(blocks, block)) return true;
      }
    }
    return false;
  }

  void close(int32_t seat) {
    const auto units = std::move(tables_[seat]);
    tables_.erase(seat);
    for (const auto& [unit, blocks] : units) {
      std::copy_if(blocks.begin(), blocks.end(), std::inserter(freed_early_, freed_early_.end()),
                   [this](int32_t block) { return is_held(block); });
    }
  }

  // As if the first to close had freed what others still hold.
  void reuse_freed(StepPlan& plan, const std::vector<bool>& is_fresh) {
    std::erase_if(freed_early_, [this](int32_t block) { return !is_held(block); });
    for (size_t i = 0; i < is_fresh.size() && !freed_early_.empty(); ++i) {
      if (!is_fresh[i]) continue;
      plan.appends[i].block = BlockId{*freed_early_.begin()};
      freed_early_.erase(freed_early_.begin());
    }
  }

  StepPlan planted(StepPlan plan) const {
    switch (defect_) {
      case Defect::kLostAppend:
        if (plan.step >= 5 && !plan.appends.empty()) plan.appends.pop_back();
        break;
      case Defect::kSharedBlock:
        for (TableAppend& append : plan.appends) {
          if (append.block == BlockId{1}) append.block = BlockId{0};
        }
        break;
      case Defect::kSharedStagingRow:
        for (StagingRow& row : plan.staging) {
          if (row == StagingRow{1}) row = StagingRow{0};
        }
        break;
      case Defect::kTokenReference:
        for (PlanToken& token : plan.tokens) {
          if (token.step > 0) ++token.sample;
        }
        break;
      case Defect::kMisalignedWindow:
        cut_windows(plan);
        break;
      case Defect::kSharedAcrossTenants:
        for (SeatOpening& opening : plan.opened) {
          opening.spec = streams_.at(raw(opening.sequence) - 1).spec;
        }
        break;
      default:
        break;
    }
    return plan;
  }

  void cut_windows(StepPlan& plan) const {
    for (GroupRows& group : plan.groups) {
      for (WalkSegment& walk : group.segments) {
        if (!options_.reproducible || walk.end != WalkEnd::kSettle || walk.num_rows < 2) continue;
        --walk.num_rows;
        --walk.staged.count;
        --group.num_rows;
      }
    }
  }

  static void claim_one_more(const StepPlan& plan, StepResult& result) {
    for (size_t g = 0; g < result.settled_rows.size(); ++g) {
      for (size_t i = 0; i < result.settled_rows[g].size(); ++i) {
        int32_t& settled = result.settled_rows[g][i];
        settled = std::min(settled + 1, plan.groups[g].segments[i].num_rows);
      }
    }
  }

  void take(const SequenceEvent& event) {
    Stream& stream = streams_.at(raw(event.sequence) - 1);
    if (stream.cancelled) error_ = "an event of a cancelled sequence";
    if (stream.finished) error_ = "an event after the end";
    switch (event.kind) {
      case SequenceEvent::Kind::kStarted:
        if (stream.started) error_ = "started twice";
        stream.started = true;
        break;
      case SequenceEvent::Kind::kPromptLogprob:
        if (event.position != ++stream.num_prompt_logprobs) error_ = "prompt log-probabilities";
        break;
      case SequenceEvent::Kind::kToken:
        if (event.position != static_cast<int32_t>(stream.tokens.size())) error_ = "a gap";
        stream.tokens.push_back(event.token);
        break;
      case SequenceEvent::Kind::kFinished:
        finish(stream, event);
        break;
    }
    if (!stream.started && error_.empty()) {
      error_ = absl::StrCat("an event before the start: ", static_cast<int>(event.kind));
    }
  }

  void finish(Stream& stream, const SequenceEvent& event) {
    stream.finished = true;
    const Ending expected = naive_stream(*stream.spec);
    if (stream.tokens != expected.tokens) error_ = "another stream than token by token";
    if (event.reason != expected.reason) error_ = "another reason to end";
    const auto scored = static_cast<int32_t>(stream.spec->prompt.size()) - 1;
    // Resumed behind its end, a sequence runs nothing.
    const bool ran = stream.spec->resumed != expected.tokens || expected.tokens.empty();
    const bool asked = ran && stream.spec->num_prompt_logprobs.has_value();
    if (asked && stream.num_prompt_logprobs != scored) {
      error_ = "prompt log-probabilities are missing";
    }
  }

  std::string at_end() const {
    for (const Stream& stream : streams_) {
      if (!stream.finished && !stream.cancelled) return "a sequence never ends";
    }
    const SchedulerLoad load = scheduler_.load();
    if (load.num_free_blocks != options_.num_blocks) return "blocks leak";
    if (load.num_free_host_blocks != options_.num_host_blocks) return "host blocks leak";
    if (map_.cyclic() && load.num_free_staging_rows != options_.staging_rows) {
      return "staging rows leak";
    }
    if (load.num_running != 0 || load.num_waiting != 0) return "someone is left";
    return "";
  }

  std::mt19937_64 random_;
  const Defect defect_;
  const SimulatedMap map_;
  const SchedulerOptions options_;
  const int32_t last_act_;
  SymbolicDevice device_;
  Scheduler scheduler_;
  std::vector<Stream> streams_;
  std::deque<InFlight> in_flight_;
  std::map<int32_t, std::map<int32_t, std::vector<int32_t>>> tables_;  // seat, unit, as planned
  std::set<int32_t> ghost_;        // kEarlyRelease: named by the plan committed last
  std::set<int32_t> freed_early_;  // closed by one seat while in the table of another
  std::string error_;
};

}  // namespace

Outcome simulate(uint64_t seed, Defect defect) {
  Run run(seed, defect, make_load(seed));
  std::string error = run.to_end();
  return {.error = std::move(error), .load = run.load()};
}

}  // namespace lckv::simulation
