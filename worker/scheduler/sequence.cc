#include "worker/scheduler/sequence.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace lckv {
namespace {

int32_t size_of(const auto& container) { return static_cast<int32_t>(container.size()); }

}  // namespace

int32_t HostCopy::num_blocks() const {
  int32_t count = 0;
  for (const Unit& unit : units) count += size_of(unit.blocks);
  return count;
}

Sequence::Sequence(SequenceId id, std::shared_ptr<const SequenceSpec> spec_in, uint64_t arrival,
                   const RangeMap& map, const std::vector<int32_t>* slots_per_block)
    : id(id),
      spec(std::move(spec_in)),
      arrival(arrival),
      generated(spec->resumed),
      ordinary(map.num_groups + 1, 0),
      groups(map.num_groups),
      table(slots_per_block) {
  LCKV_CHECK(!spec->prompt.empty());
}

int32_t Sequence::num_generated() const { return size_of(generated) + size_of(pending); }

int32_t Sequence::known_end() const { return prompt_size() + num_generated(); }

int32_t Sequence::row_end() const { return prompt_size() + std::max(spec->max_new_tokens, 1) - 1; }

PlanToken Sequence::token(int32_t position) const {
  LCKV_CHECK(position < known_end());
  if (in_prompt(position)) return {.token = spec->prompt[position]};
  const int32_t index = position - prompt_size();
  if (index < size_of(generated)) return {.token = generated[index]};
  return pending[index - size_of(generated)];
}

std::vector<int32_t> Sequence::tokens(int32_t begin, int32_t end) const {
  LCKV_CHECK(0 <= begin && begin <= end && end <= prompt_size() + size_of(generated));
  std::vector<int32_t> tokens;
  tokens.reserve(end - begin);
  for (int32_t position = begin; position < end; ++position) {
    tokens.push_back(in_prompt(position) ? spec->prompt[position]
                                         : generated[position - prompt_size()]);
  }
  return tokens;
}

bool Sequence::is_decoding() const {
  return ordinary.back() >= prompt_size() && known_end() - ordinary.back() <= 1;
}

int32_t Sequence::restart_position(int32_t chunk) const {
  const int32_t done = ordinary.back();
  if (!in_prompt(done)) return done;
  if (iterated()) return 0;
  return chunk > 0 ? done / chunk * chunk : done;
}

void Sequence::restart_at(int32_t position) {
  LCKV_CHECK(position <= ordinary.back());
  start_at(position);
}

void Sequence::start_at(int32_t position) {
  std::fill(ordinary.begin(), ordinary.end(), position);
  for (GroupProgress& group : groups) {
    LCKV_CHECK(group.rows.empty());
    group.settled = group.walked_end = group.staged_begin = position;
    group.pass = 1;
    group.pass_position = 0;
    if (iterated() && in_prompt(position)) group.num_prefill_walks = 0;
  }
}

int32_t Sequence::next_position(int32_t range) const {
  return range % 2 == 0 ? ordinary[range / 2] : groups[range / 2].settled;
}

std::optional<SequenceFinish> Sequence::finish() const {
  const int32_t count = size_of(generated);
  if (count > 0 && count > spec->min_new_tokens) {
    const int32_t last = generated.back();
    const auto& eos = spec->eos_token_ids;
    if (std::find(eos.begin(), eos.end(), last) != eos.end()) {
      return SequenceFinish{.reason = FinishReason::kEos};
    }
    const auto& stops = spec->stop_token_ids;
    if (std::binary_search(stops.begin(), stops.end(), last)) {
      return SequenceFinish{.reason = FinishReason::kStopToken, .matched_stop_token = last};
    }
  }
  if (count < spec->max_new_tokens || spec->max_new_tokens == 0) return std::nullopt;
  return SequenceFinish{.reason = spec->max_is_context ? FinishReason::kContextFull
                                                       : FinishReason::kMaxNewTokens};
}

int32_t Sequence::num_prefill_walks() const {
  int32_t most = 0;
  for (const GroupProgress& group : groups) most = std::max(most, group.num_prefill_walks);
  return most;
}

bool outranks(const Sequence& left, const Sequence& right) {
  if (left.spec->priority != right.spec->priority) {
    return left.spec->priority > right.spec->priority;
  }
  return left.arrival < right.arrival;
}

}  // namespace lckv
