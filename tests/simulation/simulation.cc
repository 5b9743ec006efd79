#include "tests/simulation/simulation.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"

namespace lckv::simulation {
namespace {

constexpr int32_t kMaxSteps = 60000;

struct Stream {
  std::shared_ptr<const SequenceSpec> spec;
  int32_t submit_at = 0;
  int32_t cancel_at = -1;
  int32_t pause_at = -1;
  int32_t unpause_at = -1;
  bool submitted = false;
  bool cancelled = false;
  bool started = false;
  bool finished = false;
  std::vector<int32_t> tokens;  // generated, `resumed` included
  int32_t num_prompt_logprobs = 0;
};

struct Ending {
  FinishReason reason = FinishReason::kEos;
  std::vector<int32_t> tokens;
};

bool contains(const std::vector<int32_t>& ids, int32_t token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

// The naive model: one token after the other.
Ending naive_stream(const SequenceSpec& spec) {
  Ending ending{.tokens = spec.resumed};
  uint64_t hash = 0;
  for (const int32_t token : spec.prompt) hash = extend_hash(hash, token);
  for (const int32_t token : spec.resumed) hash = extend_hash(hash, token);
  while (true) {
    if (!ending.tokens.empty() &&
        static_cast<int32_t>(ending.tokens.size()) >= spec.min_new_tokens) {
      const int32_t last = ending.tokens.back();
      if (contains(spec.eos_token_ids, last)) return {FinishReason::kEos, ending.tokens};
      if (contains(spec.stop_token_ids, last)) return {FinishReason::kStopToken, ending.tokens};
    }
    if (static_cast<int32_t>(ending.tokens.size()) >= spec.max_new_tokens) {
      return {spec.max_is_context ? FinishReason::kContextFull : FinishReason::kMaxNewTokens,
              ending.tokens};
    }
    ending.tokens.push_back(drawn_token(spec, hash, static_cast<int32_t>(ending.tokens.size())));
    hash = extend_hash(hash, ending.tokens.back());
  }
}

class Run {
 public:
  Run(uint64_t seed, Defect defect)
      : random_(seed),
        defect_(defect),
        map_(random_map()),
        options_(random_options()),
        device_(map_, options_, seed ^ 0x5EEDULL),
        scheduler_(options_, map_.passes) {
    const int count = 2 + below(14);
    for (int i = 0; i < count; ++i) streams_.push_back(random_stream());
  }

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

  int32_t below(int32_t bound) {
    return static_cast<int32_t>(random_() % static_cast<uint64_t>(bound));
  }
  bool one_in(int32_t n) { return below(n) == 0; }

  SimulatedMap random_map() {
    static const std::array<const char*, 10> kMaps = {
        "0_1_2_3",           "0_0_2_2", "0_6_6_6_6_6_6_7", "3_3_3_3",  "0_2_2_3_4",
        "0_0_0_5_5_5_8_8_8", "1_1_3_3", "0_1s_1_4_4s",     "0s_1s_2s", "0s_3s_3s_3s_4s"};
    return make_map(kMaps[below(kMaps.size())], one_in(2), 3 + below(8));
  }

  SchedulerOptions random_options() {
    SchedulerOptions options;
    const auto layers = static_cast<int32_t>(map_.layers.size());
    options.max_num_seqs = 1 + below(6);
    options.max_waiting = 64;
    options.max_context = 24 + below(40);
    options.reproducible = one_in(2);
    options.prefill_lookahead = options.reproducible || one_in(2) ? 1 + below(9) : 0;
    options.max_batched_rows = std::max(options.prefill_lookahead, 4 + below(24));
    options.max_batched_rows = std::max(options.max_batched_rows, options.max_num_seqs);
    options.max_row_layers = static_cast<int64_t>(options.max_batched_rows) * layers;
    int32_t blocks_per_longest = 0;
    for (int32_t unit = 0; unit < map_.num_units; ++unit) {
      const int32_t slots = 1 << below(4);
      options.slots_per_block.push_back(slots);
      blocks_per_longest += (options.max_context + slots - 1) / slots;
    }
    options.num_blocks = blocks_per_longest + below(blocks_per_longest * 2 + 1);
    options.num_host_blocks = one_in(3) ? 0 : below(blocks_per_longest * 2 + 1);
    // A seat needs a row, a reproducible chunk all of its own.
    const int32_t fewest = std::max(1, options.reproducible ? options.prefill_lookahead : 1);
    options.staging_rows = fewest + below(options.max_context + options.max_num_seqs);
    options.official_decode = one_in(5);
    options.prefill_tolerance = one_in(2) ? 0.0F : 0.001F;
    options.free_rows = 1 + below(16);
    options.max_uncommitted_plans = 1 + below(2);
    return options;
  }

  Stream random_stream() {
    auto spec = std::make_shared<SequenceSpec>();
    spec->tenant = absl::StrCat("tenant", below(3));
    spec->priority = below(3);
    const int32_t prompt = 1 + below(options_.max_context - 1);
    for (int32_t i = 0; i < prompt; ++i) spec->prompt.push_back(below(kVocabulary));
    spec->max_is_context = one_in(4);
    const int32_t left = options_.max_context - prompt;
    spec->max_new_tokens = spec->max_is_context ? left : below(left + 1);
    spec->min_new_tokens = one_in(3) ? below(spec->max_new_tokens + 1) : 0;
    if (!one_in(3)) spec->eos_token_ids = {kEos};
    if (one_in(3)) spec->stop_token_ids = {1 + below(kVocabulary - 1)};
    if (one_in(4)) spec->num_prompt_logprobs = 0;
    if (one_in(4)) spec->num_logprobs = 1;
    const bool can_iterate = !map_.cyclic() || prompt <= options_.staging_rows;
    if (can_iterate && one_in(3)) spec->prefill_mode = PrefillMode::kIterated;
    if (one_in(3)) {
      std::vector<int32_t> tokens = naive_stream(*spec).tokens;
      tokens.resize(below(static_cast<int32_t>(tokens.size()) + 1));
      spec->resumed = tokens;
    }
    Stream stream{.spec = spec, .submit_at = below(80), .tokens = spec->resumed};
    if (one_in(4)) stream.cancel_at = stream.submit_at + below(60);
    if (one_in(4)) {
      stream.pause_at = stream.submit_at + below(60);
      stream.unpause_at = stream.pause_at + 1 + below(60);
    }
    last_act_ = std::max({last_act_, stream.submit_at, stream.cancel_at, stream.unpause_at});
    return stream;
  }

  void act(int32_t turn) {
    for (size_t i = 0; i < streams_.size(); ++i) {
      Stream& stream = streams_[i];
      const SequenceId id{i + 1};
      if (stream.submit_at == turn) {
        stream.submitted = true;
        const absl::Status status = scheduler_.submit(id, stream.spec, time_at(turn));
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
    for (const SeatId seat : plan.closed) tables_.erase(raw(seat));
    for (const TableTrim& trim : plan.trims) {
      auto& blocks = tables_[raw(trim.seat)][raw(trim.unit)];
      blocks.erase(blocks.begin(),
                   blocks.begin() + std::min<int64_t>(trim.num_blocks, std::ssize(blocks)));
    }
    for (const TableAppend& append : plan.appends) {
      const int32_t block = raw(append.block);
      bool named = ghost_.contains(block);
      for (const InFlight& other : in_flight_) named = named || other.blocks.contains(block);
      if (named) error_ = absl::StrCat("block ", block, " is reused before its plan's commit");
      tables_[raw(append.seat)][raw(append.unit)].push_back(block);
      next.blocks.insert(block);
    }
    for (int32_t k = 0; k <= map_.num_groups; ++k) {
      range(plan.ordinary[k], 2 * k);
      if (k < map_.num_groups) range(plan.groups[k], 2 * k + 1);
    }
    if (row_layers > options_.max_row_layers) error_ = "the step's budget is exceeded";
    if (row_layers != plan.num_row_layers) error_ = "num_row_layers";
    in_flight_.push_back(std::move(next));
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
  SymbolicDevice device_;
  Scheduler scheduler_;
  std::vector<Stream> streams_;
  std::deque<InFlight> in_flight_;
  std::map<int32_t, std::map<int32_t, std::vector<int32_t>>> tables_;  // seat, unit, as planned
  std::set<int32_t> ghost_;  // kEarlyRelease: named by the plan committed last
  int32_t last_act_ = 0;
  std::string error_;
};

}  // namespace

Outcome simulate(uint64_t seed, Defect defect) {
  Run run(seed, defect);
  std::string error = run.to_end();
  return {.error = std::move(error), .load = run.load()};
}

}  // namespace lckv::simulation
