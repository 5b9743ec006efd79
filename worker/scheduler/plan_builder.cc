#include "worker/scheduler/plan_builder.h"

#include <algorithm>
#include <limits>

#include "kernels/check.h"

namespace lckv {
namespace {

// The positions below it must have slots in a unit that `range` writes.
int32_t written_end(const Sequence& sequence, const RowChoice& choice, int32_t range) {
  const int32_t index = range / 2;
  if (range % 2 == 0) return sequence.ordinary[index] + choice.ordinary[index];
  const WalkChoice& walk = choice.groups[index];
  const GroupProgress& group = sequence.groups[index];
  if (walk.end == WalkEnd::kPass || walk.end == WalkEnd::kPassEnd) return group.settled;
  return group.settled + walk.num_rows;
}

bool settles_unknown(const WalkChoice& walk) {
  return walk.end == WalkEnd::kSettle && walk.num_rows > 1;
}

}  // namespace

int32_t num_missing_blocks(const Sequence& sequence, const RowChoice& choice, const RangeMap& map,
                           const std::vector<int32_t>& slots_per_block) {
  int32_t missing = 0;
  for (size_t u = 0; u < map.units.size(); ++u) {
    const int32_t end = written_end(sequence, choice, map.units[u].owner);
    if (!sequence.host.has_value()) {
      missing += sequence.table.num_missing(UnitId{static_cast<int32_t>(u)}, end);
      continue;
    }
    const HostCopy::Unit& held = sequence.host->units[u];
    const int32_t num_held = held.num_trimmed + static_cast<int32_t>(held.blocks.size());
    missing += std::max(0, (end + slots_per_block[u] - 1) / slots_per_block[u] - num_held);
  }
  return missing;
}

PlanBuilder::PlanBuilder(const BuilderOptions& options, const RangeMap& map, KvMemory& memory)
    : options_(options),
      map_(map),
      memory_(memory),
      row_layers_left_(options.max_row_layers),
      range_rows_left_(map.layers.size(), options.max_batched_rows) {
  LCKV_CHECK(options.step > 0);
  plan_.step = record_.step = options.step;
  plan_.ordinary.resize(map.num_groups + 1);
  plan_.groups.resize(map.num_groups);
  record_.walks.resize(map.num_groups);
}

bool PlanBuilder::empty() const {
  const auto has_rows = [](const auto& rows) { return rows.num_rows > 0; };
  return plan_.closed.empty() && plan_.opened.empty() && plan_.trims.empty() &&
         record_.done_before.empty() &&
         std::none_of(plan_.ordinary.begin(), plan_.ordinary.end(), has_rows) &&
         std::none_of(plan_.groups.begin(), plan_.groups.end(), has_rows);
}

void PlanBuilder::open(Sequence& sequence, SeatId seat) {
  LCKV_CHECK(!sequence.seat.has_value());
  sequence.seat = seat;
  sequence.last_step = plan_.step;
  if (!sequence.started) record_.started.push_back(sequence.id);
  sequence.started = true;
  plan_.opened.push_back({.seat = seat,
                          .sequence = sequence.id,
                          .spec = sequence.spec,
                          .generated = sequence.generated});
  if (sequence.host.has_value()) copy_to_device(sequence);
  // What it has already: of its own from the host, or of a beginning that others have run.
  for (int32_t u = 0; u < sequence.table.num_units(); ++u) {
    const UnitId unit{u};
    const int32_t num_trimmed = sequence.table.num_trimmed(unit);
    if (num_trimmed > 0) {
      plan_.trims.push_back({.seat = seat, .unit = unit, .num_blocks = num_trimmed});
    }
    for (const BlockRef& block : sequence.table.blocks(unit)) {
      plan_.appends.push_back({.seat = seat, .unit = unit, .block = block.id()});
    }
  }
}

void PlanBuilder::copy_to_device(Sequence& sequence) {
  std::vector<HostBlockRef> copied;
  for (int32_t u = 0; u < sequence.table.num_units(); ++u) {
    HostCopy::Unit& unit = sequence.host->units[u];
    if (unit.num_trimmed > 0) sequence.table.skip(UnitId{u}, unit.num_trimmed);
    for (HostBlockRef& host : unit.blocks) {
      BlockRef block = memory_.take_block();
      plan_.to_device.push_back({.device = block.id(), .host = host.id()});
      sequence.table.append(UnitId{u}, std::move(block));
      copied.push_back(std::move(host));
    }
  }
  // This plan reads the host blocks; a copy to the host in the same plan would come before.
  memory_.deferred_host.release(plan_.step, std::move(copied));
  sequence.host.reset();
}

void PlanBuilder::copy_to_host(Sequence& sequence) {
  LCKV_CHECK(!sequence.host.has_value());
  HostCopy copy;
  copy.units.resize(sequence.table.num_units());
  for (int32_t u = 0; u < sequence.table.num_units(); ++u) {
    copy.units[u].num_trimmed = sequence.table.num_trimmed(UnitId{u});
    for (const BlockRef& block : sequence.table.blocks(UnitId{u})) {
      std::optional<HostBlockRef> host = memory_.host_blocks.take();
      LCKV_CHECK(host.has_value());
      plan_.to_host.push_back({.device = block.id(), .host = host->id()});
      copy.units[u].blocks.push_back(*std::move(host));
    }
  }
  sequence.host = std::move(copy);
}

void PlanBuilder::trim(Sequence& sequence, int32_t chunk) {
  const int32_t restart =
      map_.num_groups > 0 ? sequence.restart_position(chunk) : std::numeric_limits<int32_t>::max();
  const uint64_t last_step = sequence.last_step;
  for (size_t u = 0; u < map_.units.size(); ++u) {
    const UnitRule& rule = map_.units[u];
    if (rule.readers.empty()) continue;
    int32_t first_seen = std::numeric_limits<int32_t>::max();
    for (const UnitRule::Reader& reader : rule.readers) {
      const int32_t row = std::min(sequence.next_position(reader.range), restart);
      first_seen = std::min(first_seen, row - reader.window + 1);
    }
    const UnitId unit{static_cast<int32_t>(u)};
    std::vector<BlockRef> dropped = sequence.table.trim(unit, std::max(first_seen, 0));
    if (dropped.empty()) continue;
    plan_.trims.push_back(
        {.seat = *sequence.seat, .unit = unit, .num_blocks = static_cast<int32_t>(dropped.size())});
    memory_.deferred.release(last_step, std::move(dropped));
    sequence.last_step = plan_.step;
  }
}

void PlanBuilder::add(Sequence& sequence, const RowChoice& choice) {
  LCKV_CHECK(sequence.seat.has_value() && !sequence.awaits_walk && !choice.empty());
  sequence.last_step = plan_.step;
  append_blocks(sequence, choice);
  take_staging(sequence, choice);
  for (int32_t k = 0; k <= map_.num_groups; ++k) {
    if (choice.ordinary[k] > 0) add_ordinary(sequence, k, choice.ordinary[k]);
    if (k < map_.num_groups && choice.groups[k].num_rows > 0) {
      add_walk(sequence, k, choice.groups[k]);
    }
  }
  release_staging(sequence);
  LCKV_CHECK(choice.row_layers <= row_layers_left_);
  row_layers_left_ -= choice.row_layers;
  plan_.num_row_layers += choice.row_layers;
}

void PlanBuilder::append_blocks(Sequence& sequence, const RowChoice& choice) {
  for (size_t u = 0; u < map_.units.size(); ++u) {
    const UnitId unit{static_cast<int32_t>(u)};
    const int32_t end = written_end(sequence, choice, map_.units[u].owner);
    for (int32_t n = sequence.table.num_missing(unit, end); n > 0; --n) {
      BlockRef block = memory_.take_block();
      plan_.appends.push_back({.seat = *sequence.seat, .unit = unit, .block = block.id()});
      sequence.table.append(unit, std::move(block));
    }
  }
}

void PlanBuilder::take_staging(Sequence& sequence, const RowChoice& choice) {
  for (int32_t g = 0; g < map_.num_groups; ++g) {
    GroupProgress& group = sequence.groups[g];
    while (group.staged_end() < choice.stage_end[g]) {
      group.rows.push_back(memory_.staging.take(g));
    }
  }
}

PlanSpan PlanBuilder::staging_span(const GroupProgress& group, int32_t first_position,
                                   int32_t num_rows) {
  LCKV_CHECK(first_position >= group.staged_begin);
  LCKV_CHECK(first_position + num_rows <= group.staged_end());
  const PlanSpan span{.begin = static_cast<int32_t>(plan_.staging.size()), .count = num_rows};
  const auto first = group.rows.begin() + (first_position - group.staged_begin);
  plan_.staging.insert(plan_.staging.end(), first, first + num_rows);
  return span;
}

void PlanBuilder::add_ordinary(Sequence& sequence, int32_t index, int32_t num_rows) {
  const int32_t first = sequence.ordinary[index];
  OrdinarySegment segment{.seat = *sequence.seat, .first_position = first, .num_rows = num_rows};
  if (index == 0) {
    segment.tokens = {.begin = static_cast<int32_t>(plan_.tokens.size()), .count = num_rows};
    for (int32_t i = 0; i < num_rows; ++i) plan_.tokens.push_back(sequence.token(first + i));
  } else {
    segment.inputs = staging_span(sequence.groups[index - 1], first, num_rows);
  }
  if (index < map_.num_groups) {
    segment.outputs = staging_span(sequence.groups[index], first, num_rows);
  }
  RangeRows& rows = plan_.ordinary[index];
  if (index == map_.num_groups) add_samples(sequence, segment, rows.num_rows);
  rows.segments.push_back(segment);
  rows.num_rows += num_rows;
  range_rows_left_[RangeMap::ordinary(index)] -= num_rows;
  sequence.ordinary[index] += num_rows;
}

void PlanBuilder::add_walk(Sequence& sequence, int32_t index, const WalkChoice& choice) {
  GroupProgress& group = sequence.groups[index];
  const bool passes = choice.end != WalkEnd::kSettle;
  WalkSegment walk{.seat = *sequence.seat, .num_rows = choice.num_rows, .end = choice.end};
  walk.first_position = passes ? group.pass_position : group.settled;
  walk.staged_position = passes ? 0 : group.settled;
  const int32_t walk_end = walk.first_position + walk.num_rows;
  const int32_t staged_end = passes ? sequence.prompt_size() : walk_end;
  walk.staged = staging_span(group, walk.staged_position, staged_end - walk.staged_position);
  walk.num_new = walk_end - std::clamp(group.walked_end, walk.first_position, walk_end);
  walk.warm = settles_unknown(choice);
  walk.official_decode = choice.official_decode;
  if (!passes && !sequence.iterated() && sequence.in_prompt(walk.first_position)) {
    walk.tolerance = options_.prefill_tolerance;
  }
  record_.walks[index].push_back({.sequence = sequence.id,
                                  .first_position = walk.first_position,
                                  .num_rows = walk.num_rows,
                                  .end = walk.end});
  plan_.groups[index].segments.push_back(walk);
  plan_.groups[index].num_rows += walk.num_rows;
  range_rows_left_[RangeMap::group(index)] -= walk.num_rows;
  group.walked_end = std::max(group.walked_end, walk_end);
  advance(sequence, group, choice);
}

void PlanBuilder::advance(Sequence& sequence, GroupProgress& group, const WalkChoice& choice) {
  if (settles_unknown(choice)) {
    sequence.awaits_walk = true;
    return;
  }
  if (choice.end == WalkEnd::kSettle) {
    group.settled += choice.num_rows;
    return;
  }
  group.pass_position += choice.num_rows;
  if (choice.end == WalkEnd::kCommit) group.settled = group.pass_position;
  if (group.pass_position < sequence.prompt_size()) return;
  group.pass_position = 0;
  ++group.pass;
}

void PlanBuilder::add_samples(Sequence& sequence, const OrdinarySegment& segment,
                              int32_t first_row) {
  const SequenceSpec& spec = *sequence.spec;
  const int32_t last = sequence.prompt_size() - 1;
  for (int32_t i = 0; i < segment.num_rows; ++i) {
    const int32_t position = segment.first_position + i;
    SampleRow sample{.seat = segment.seat, .row = first_row + i};
    if (position < last) {
      if (!spec.num_prompt_logprobs.has_value() || position + 1 < sequence.num_scored) continue;
      sample.kind = SampleRow::Kind::kPromptLogprob;
      sample.index = position + 1;
      sample.target = spec.prompt[sample.index];
      sample.num_logprobs = *spec.num_prompt_logprobs;
      sequence.num_scored = position + 2;
    } else {
      sample.index = position - last;
      if (position == last && spec.max_new_tokens == 0) record_.scored.push_back(sequence.id);
      // Rows of tokens generated before, other than the newest, are only replayed.
      const bool is_newest = sample.index == sequence.num_generated();
      if (!is_newest || sample.index >= spec.max_new_tokens) continue;
      sample.num_logprobs = spec.num_logprobs.value_or(-1);
      sequence.pending.push_back(
          {.step = plan_.step, .sample = static_cast<int32_t>(plan_.samples.size())});
    }
    add_sample(sequence, sample);
  }
}

void PlanBuilder::add_sample(Sequence& sequence, const SampleRow& sample) {
  plan_.samples.push_back(sample);
  record_.samples.push_back({.sequence = sequence.id, .kind = sample.kind, .index = sample.index});
}

void PlanBuilder::release_staging(Sequence& sequence) {
  for (int32_t g = 0; g < map_.num_groups; ++g) {
    GroupProgress& group = sequence.groups[g];
    // Every pass reads all rows of the prompt: they stay until the last one is through.
    const bool in_passes = group.pass_position > 0 || (group.pass > 1 && group.settled == 0);
    if (in_passes) continue;
    while (!group.rows.empty() && group.staged_begin < sequence.ordinary[g + 1]) {
      released_.emplace_back(g, group.rows.front());
      group.rows.pop_front();
      ++group.staged_begin;
    }
  }
}

int32_t PlanBuilder::num_released(int32_t group) const {
  return static_cast<int32_t>(std::count_if(
      released_.begin(), released_.end(), [group](const auto& row) { return row.first == group; }));
}

std::pair<StepPlan, PlanRecord> PlanBuilder::finish() {
  for (const auto& [group, row] : released_) memory_.staging.give_back(group, row);
  released_.clear();
  return {std::move(plan_), std::move(record_)};
}

}  // namespace lckv
