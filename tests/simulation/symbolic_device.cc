#include "tests/simulation/symbolic_device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace lckv::simulation {
SymbolicDevice::SymbolicDevice(const SimulatedMap& map, const SchedulerOptions& options,
                               uint64_t seed)
    : map_(map),
      options_(options),
      random_(seed),
      tables_(options.max_num_seqs, map.num_units),
      staging_(map.num_groups, std::vector<Row>(options.staging_rows)),
      seats_(options.max_num_seqs) {
  const int32_t slots =
      *std::max_element(options.slots_per_block.begin(), options.slots_per_block.end());
  blocks_.assign(options.num_blocks, std::vector<Content>(slots));
  host_blocks_.assign(options.num_host_blocks, std::vector<Content>(slots));
}

void SymbolicDevice::fail(const StepPlan& plan, const std::string& what) {
  if (error_.empty()) error_ = absl::StrCat("step ", plan.step, ": ", what);
}

// Whoever has the same kind may read what rows of the sequence wrote.
uint64_t SymbolicDevice::kind_of(const Seat& seat, bool in_prompt) const {
  const SequenceSpec& spec = *seat.spec;
  const bool iterated = map_.cyclic() && spec.prefill_mode == PrefillMode::kIterated;
  if (spec.skip_prefix_cache || iterated) return seat.sequence;
  const bool differs = options_.prefill_tolerance > 0.0F || options_.official_decode;
  const std::string text = absl::StrCat(spec.tenant, "/", spec.prefix_salt, "/",
                                        map_.cyclic() && differs && !in_prompt ? "generated" : "");
  uint64_t kind = 0;
  for (const char c : text) kind = extend_hash(kind, c);
  return kind;
}

Content SymbolicDevice::content(const Seat& seat, int32_t position) {
  const bool in_prompt = position < std::ssize(seat.spec->prompt);
  return {.sequence = seat.sequence,
          .kind = in_prompt ? seat.prompt_kind : seat.generated_kind,
          .position = position,
          .hash = seat.hashes[position]};
}

StepResult SymbolicDevice::run(const StepPlan& plan) {
  if (plan.step != last_step_ + 1) fail(plan, "steps are not in order");
  last_step_ = plan.step;
  copy_blocks(plan);
  change_seats(plan);
  change_tables(plan);
  StepResult result{.step = plan.step};
  result.settled_rows.resize(map_.num_groups);
  for (int32_t range = 0; range <= map_.num_groups; ++range) {
    run_ordinary(plan, range);
    if (range == map_.num_groups) break;
    run_walks(plan, range, result.settled_rows[range]);
  }
  std::vector<int32_t>& tokens = sampled_[plan.step];
  for (const SampleRow& row : plan.samples) {
    result.samples.push_back(sample(plan, row));
    tokens.push_back(result.samples.back().token);
  }
  if (sampled_.size() > 8) sampled_.erase(sampled_.begin());
  return result;
}

void SymbolicDevice::copy_blocks(const StepPlan& plan) {
  for (const BlockCopy& copy : plan.to_host) {
    host_blocks_.at(raw(copy.host)) = blocks_.at(raw(copy.device));
  }
  for (const BlockCopy& copy : plan.to_device) {
    blocks_.at(raw(copy.device)) = host_blocks_.at(raw(copy.host));
  }
}

void SymbolicDevice::change_seats(const StepPlan& plan) {
  for (const SeatId seat : plan.closed) {
    for (int32_t unit = 0; unit < map_.num_units; ++unit) {
      for (const int32_t block : tables_.blocks(seat, UnitId{unit})) --users_[block].num_tables;
    }
    tables_.close(seat);
    seats_.at(raw(seat)) = Seat{};
  }
  for (const SeatOpening& opening : plan.opened) {
    Seat& seat = seats_.at(raw(opening.seat));
    if (seat.spec != nullptr) fail(plan, "a seat is opened that was not closed");
    seat = Seat{.sequence = raw(opening.sequence), .spec = opening.spec};
    seat.prompt_kind = kind_of(seat, true);
    seat.generated_kind = kind_of(seat, false);
    uint64_t hash = 0;
    for (const int32_t token : opening.spec->prompt) {
      seat.hashes.push_back(hash = extend_hash(hash, token));
    }
    for (const int32_t token : opening.generated) {
      seat.hashes.push_back(hash = extend_hash(hash, token));
    }
    seat.next_position.assign(2 * map_.num_groups + 1, -1);
  }
}

void SymbolicDevice::change_tables(const StepPlan& plan) {
  for (const TableTrim& trim : plan.trims) {
    const auto blocks = tables_.blocks(trim.seat, trim.unit);
    const int32_t held = std::min<int32_t>(trim.num_blocks, static_cast<int32_t>(blocks.size()));
    for (int32_t i = 0; i < held; ++i) --users_[blocks[i]].num_tables;
    tables_.trim(trim.seat, trim.unit, trim.num_blocks);
  }
  for (const TableAppend& append : plan.appends) {
    Users& users = users_[raw(append.block)];
    if (++users.num_tables == 2) users.shared_since = plan.step;
    tables_.append(append.seat, append.unit, append.block);
  }
}

Content* SymbolicDevice::slot(SeatId seat, int32_t unit, int32_t position) {
  const int32_t slots = options_.slots_per_block[unit];
  const auto blocks = tables_.blocks(seat, UnitId{unit});
  const int32_t index = position / slots - tables_.num_trimmed(seat, UnitId{unit});
  if (index < 0 || index >= static_cast<int32_t>(blocks.size())) return nullptr;
  return &blocks_.at(blocks[index])[position % slots];
}

void SymbolicDevice::write_slot(const StepPlan& plan, SeatId seat, int32_t unit,
                                const Content& content) {
  Content* const target = slot(seat, unit, content.position);
  if (target == nullptr) {
    fail(plan, absl::StrCat("no block for position ", content.position, " of unit ", unit));
    return;
  }
  const int32_t index =
      content.position / options_.slots_per_block[unit] - tables_.num_trimmed(seat, UnitId{unit});
  const int32_t block = tables_.blocks(seat, UnitId{unit})[index];
  // Whoever takes it in this step reads what is written in this step.
  const bool shared = users_[block].num_tables > 1 && users_[block].shared_since < plan.step;
  if (shared) fail(plan, absl::StrCat("block ", block, " is written in two tables"));
  *target = content;
}

// All that `layer` may see of committed slots below `committed_end` is there, for a row at
// `position`.
void SymbolicDevice::check_history(const StepPlan& plan, const Seat& seat, SeatId id, int32_t layer,
                                   int32_t position, int32_t committed_end) {
  const SimulatedLayer& shape = map_.layers[layer];
  const int32_t end = std::min(committed_end, shape.strict ? position : position + 1);
  const int32_t begin = shape.window > 0 ? std::max(0, position - shape.window + 1) : 0;
  for (int32_t j = begin; j < end; ++j) {
    const Content* const seen = slot(id, shape.source_unit, j);
    if (seen != nullptr && content(seat, j).is_as(*seen)) continue;
    return fail(plan, absl::StrCat("layer ", layer, " at position ", position,
                                   " reads something else than position ", j));
  }
}

void SymbolicDevice::run_ordinary(const StepPlan& plan, int32_t index) {
  const int32_t range = 2 * index;
  const bool last = index == map_.num_groups;
  if (last) last_rows_.clear();
  int32_t num_rows = 0;
  for (const OrdinarySegment& segment : plan.ordinary[index].segments) {
    Seat& seat = seats_.at(raw(segment.seat));
    if (seat.spec == nullptr) return fail(plan, "rows for an empty seat");
    int32_t& next = seat.next_position[range];
    if (next >= 0 && segment.first_position != next) fail(plan, "a row is skipped or run twice");
    next = segment.first_position + segment.num_rows;
    num_rows += segment.num_rows;
    for (int32_t i = 0; i < segment.num_rows; ++i) {
      const int32_t position = segment.first_position + i;
      if (index == 0) feed(plan, seat, position, plan.tokens.at(segment.tokens.begin + i));
      if (static_cast<int32_t>(seat.hashes.size()) <= position) return fail(plan, "no token yet");
      const Content content = this->content(seat, position);
      if (index > 0) {
        const Row& row = staging_[index - 1].at(raw(plan.staging.at(segment.inputs.begin + i)));
        if (row.input != content) fail(plan, "an ordinary range reads another row's output");
        if (!row.has_output) fail(plan, "an ordinary range reads a row that is not settled");
      }
      for (const int32_t layer : map_.range_layers[range]) {
        const int32_t unit = map_.layers[layer].unit;
        if (unit >= 0) write_slot(plan, segment.seat, unit, content);
      }
      if (!last) {
        staging_[index].at(raw(plan.staging.at(segment.outputs.begin + i))) = Row{.input = content};
      } else {
        last_rows_.push_back(content);
      }
    }
    for (const int32_t layer : map_.range_layers[range]) {
      for (int32_t i = 0; i < segment.num_rows; ++i) {
        const int32_t position = segment.first_position + i;
        check_history(plan, seat, segment.seat, layer, position, position + 1);
      }
    }
  }
  if (num_rows != plan.ordinary[index].num_rows) fail(plan, "num_rows of an ordinary range");
}

void SymbolicDevice::feed(const StepPlan& plan, Seat& seat, int32_t position,
                          const PlanToken& source) {
  int32_t token = source.token;
  if (source.step > 0) {
    const auto sampled = sampled_.find(source.step);
    if (sampled == sampled_.end() ||
        source.sample >= static_cast<int32_t>(sampled->second.size())) {
      return fail(plan, "a token names a sample that does not exist");
    }
    token = sampled->second[source.sample];
  }
  if (position > static_cast<int32_t>(seat.hashes.size())) return fail(plan, "a token is skipped");
  const uint64_t hash = extend_hash(position == 0 ? 0 : seat.hashes[position - 1], token);
  if (position == static_cast<int32_t>(seat.hashes.size())) seat.hashes.push_back(hash);
  if (seat.hashes[position] != hash) fail(plan, "another token than the sequence's is fed");
}

void SymbolicDevice::check_window(const StepPlan& plan, const Seat& seat,
                                  const WalkSegment& segment) {
  const int32_t prompt = static_cast<int32_t>(seat.spec->prompt.size());
  const int32_t end = segment.first_position + segment.num_rows;
  if (segment.end != WalkEnd::kSettle) {
    if (segment.warm) fail(plan, "an iterated walk starts from a warm guess");
    return;
  }
  if (segment.staged_position != segment.first_position) fail(plan, "a window starts elsewhere");
  if (segment.first_position >= prompt) {
    if (segment.num_rows > 1 && segment.tolerance != 0.0F) {
      fail(plan, "generated tokens are replayed with a tolerance");
    }
    return;
  }
  if (end > prompt) fail(plan, "a window spans prompt and generated tokens");
  if (!options_.reproducible || seat.spec->prefill_mode == PrefillMode::kIterated) return;
  const int32_t chunk = options_.prefill_lookahead;
  const int32_t chunk_end = std::min(prompt, (segment.first_position / chunk + 1) * chunk);
  if (end != chunk_end) fail(plan, "a reproducible window does not end with its chunk");
}

// Rows that the official code decodes: generated ones, and those of iterated prompts no longer than
// its passes.
void SymbolicDevice::check_official(const StepPlan& plan, const Seat& seat,
                                    const WalkSegment& segment) {
  const auto prompt = static_cast<int32_t>(seat.spec->prompt.size());
  const bool decodes =
      segment.first_position >= prompt ||
      (seat.spec->prefill_mode == PrefillMode::kIterated && prompt <= map_.num_passes);
  const bool official = options_.official_decode && decodes;
  if (segment.official_decode != official) fail(plan, "official decode");
  if (official && segment.num_rows != 1) fail(plan, "official decode of several rows");
}

// All rows of a prompt finish a pass before the next one begins.
void SymbolicDevice::check_passes(const StepPlan& plan, int32_t group, const WalkSegment& segment) {
  const int32_t begin = segment.first_position;
  const int32_t end = begin + segment.num_rows;
  const auto num_walks = [&](int32_t position) {
    return staging_[group].at(raw(plan.staging.at(segment.staged.begin + position))).num_walks;
  };
  const int32_t pass = num_walks(begin) + 1;
  for (int32_t position = 0; position < segment.staged.count; ++position) {
    const int32_t walked = position < begin ? pass : pass - 1;
    if (num_walks(position) != walked) return fail(plan, "a pass begins before the last one ends");
  }
  const bool ends = end == segment.staged.count;
  const WalkEnd expected = pass == map_.num_passes ? WalkEnd::kCommit
                           : ends                  ? WalkEnd::kPassEnd
                                                   : WalkEnd::kPass;
  if (segment.end != expected) fail(plan, "a pass ends in another way");
}

void SymbolicDevice::run_walk(const StepPlan& plan, int32_t group, const WalkSegment& segment,
                              std::vector<int32_t>& settled) {
  settled.push_back(segment.num_rows);
  Seat& seat = seats_.at(raw(segment.seat));
  if (seat.spec == nullptr) return fail(plan, "a walk for an empty seat");
  check_window(plan, seat, segment);
  check_official(plan, seat, segment);
  int32_t& next = seat.next_position[2 * group + 1];
  const bool settles = segment.end == WalkEnd::kSettle || segment.end == WalkEnd::kCommit;
  if (settles && next >= 0 && segment.first_position != next) fail(plan, "a walk starts elsewhere");
  // A sequence that comes back to a seat begins with a whole chunk again.
  const bool chunked = options_.reproducible && segment.end == WalkEnd::kSettle &&
                       seat.spec->prefill_mode == PrefillMode::kExact &&
                       segment.first_position < std::ssize(seat.spec->prompt);
  if (chunked && next < 0 && segment.first_position % options_.prefill_lookahead != 0) {
    fail(plan, "a chunk is gone on with where it was left");
  }
  const int32_t offset = segment.first_position - segment.staged_position;
  if (offset < 0 || offset + segment.num_rows > segment.staged.count) {
    return fail(plan, "a walk's rows are not staged");
  }
  if (segment.end != WalkEnd::kSettle && segment.staged.count != std::ssize(seat.spec->prompt)) {
    return fail(plan, "a pass needs the whole prompt staged");
  }
  for (int32_t i = 0; i < offset + segment.num_rows; ++i) {
    const int32_t position = segment.staged_position + i;
    const Row& row = staging_[group].at(raw(plan.staging.at(segment.staged.begin + i)));
    if (static_cast<int32_t>(seat.hashes.size()) <= position ||
        row.input != content(seat, position)) {
      return fail(plan, absl::StrCat("staging holds something else than position ", position));
    }
    const bool is_new = i >= offset + segment.num_rows - segment.num_new;
    if (i >= offset && is_new != (row.num_walks == 0)) fail(plan, "num_new");
  }
  if (segment.end != WalkEnd::kSettle) check_passes(plan, group, segment);
  for (const int32_t layer : map_.range_layers[2 * group + 1]) {
    const bool inside = map_.unit_range[map_.layers[layer].source_unit] == 2 * group + 1;
    for (int32_t i = 0; i < segment.num_rows; ++i) {
      const int32_t position = segment.first_position + i;
      check_history(plan, seat, segment.seat, layer, position,
                    inside ? segment.staged_position : position + 1);
    }
  }
  int32_t count = segment.num_rows;
  if (segment.end == WalkEnd::kSettle && count > 1) {
    count = 1 + static_cast<int32_t>(random_() % static_cast<uint64_t>(count));
  }
  if (!settles) return;
  settled.back() = count;
  next = segment.first_position + count;
}

// All of them read what was committed before any of them commits.
void SymbolicDevice::run_walks(const StepPlan& plan, int32_t group, std::vector<int32_t>& settled) {
  const std::vector<WalkSegment>& segments = plan.groups[group].segments;
  for (const WalkSegment& segment : segments) run_walk(plan, group, segment, settled);
  for (size_t i = 0; i < segments.size() && error_.empty(); ++i) {
    const WalkEnd end = segments[i].end;
    const bool settles = end == WalkEnd::kSettle || end == WalkEnd::kCommit;
    finish_walk(plan, group, segments[i], settles ? settled[i] : 0);
  }
}

void SymbolicDevice::finish_walk(const StepPlan& plan, int32_t group, const WalkSegment& segment,
                                 int32_t num_settled) {
  const Seat& seat = seats_.at(raw(segment.seat));
  const int32_t offset = segment.first_position - segment.staged_position;
  for (int32_t i = 0; i < segment.num_rows; ++i) {
    const int32_t position = segment.first_position + i;
    Row& row = staging_[group].at(raw(plan.staging.at(segment.staged.begin + offset + i)));
    ++row.num_walks;
    if (segment.end == WalkEnd::kCommit && row.num_walks != map_.num_passes) {
      fail(plan, "an iterated row is committed after another number of passes");
    }
    row.has_output = i < num_settled;
    for (const int32_t layer : map_.range_layers[2 * group + 1]) {
      const int32_t unit = map_.layers[layer].unit;
      if (unit < 0 || (i >= num_settled && segment.end != WalkEnd::kSettle)) continue;
      // Any row of a window may settle, so all need a block; only settled ones are written.
      if (slot(segment.seat, unit, position) == nullptr) fail(plan, "a window's row has no block");
      if (i < num_settled) {
        write_slot(plan, segment.seat, unit, content(seat, position));
      }
    }
  }
}

SampleResult SymbolicDevice::sample(const StepPlan& plan, const SampleRow& row) {
  SampleResult result{.token = row.target};
  const Seat& seat = seats_.at(raw(row.seat));
  if (row.row < 0 || row.row >= static_cast<int32_t>(last_rows_.size()) || seat.spec == nullptr) {
    fail(plan, "a sample of a row that does not run");
    return result;
  }
  const Content& content = last_rows_[row.row];
  const int32_t prompt = static_cast<int32_t>(seat.spec->prompt.size());
  if (row.num_logprobs >= 0) result.logprob = TokenLogprob{.own = -1.0F};
  if (row.kind == SampleRow::Kind::kPromptLogprob) {
    if (content.position != row.index - 1 || seat.spec->prompt[row.index] != row.target) {
      fail(plan, "a prompt log-probability of another token");
    }
    return result;
  }
  if (content.sequence != seat.sequence || content.position != prompt + row.index - 1) {
    fail(plan, "a sample of another row");
  }
  result.token = drawn_token(*seat.spec, content.hash, row.index);
  return result;
}

}  // namespace lckv::simulation
