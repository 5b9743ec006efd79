// Reuse of prefixes: whose blocks a sequence may take instead of running its first rows.
//
// A hit is worth a beginning that was run: every range starts behind it. What is offered are
// positions that a plan made before runs through all ranges, so that their slots are written when a
// later plan reads them; a walk commits its rows only after others of its step have read, so cyclic
// maps wait for the next plan.
//
// In a cyclic map iterated prompts depend on all of their tokens and share nothing. Generated
// tokens are exact: they equal what a prompt of them gives only at tolerance 0, and where the
// official code's decode is not asked for. In reproducible mode with a tolerance a row depends on
// where its window began: hits end where windows begin.
#include <algorithm>

#include "kernels/check.h"
#include "worker/scheduler/scheduler_impl.h"

namespace lckv {

bool Scheduler::Impl::shares_prefixes(const Sequence& sequence) const {
  if (!options_.prefix_caching || sequence.spec->skip_prefix_cache) return false;
  return map_.num_groups == 0 || !sequence.iterated();
}

int32_t Scheduler::Impl::shareable_end(const Sequence& sequence) const {
  const bool differs = options_.prefill_tolerance > 0.0F || options_.official_decode;
  if (map_.num_groups > 0 && differs) return sequence.prompt_size();
  return sequence.prompt_size() + static_cast<int32_t>(sequence.generated.size());
}

void Scheduler::Impl::take_prefix(Sequence& sequence) {
  if (!shares_prefixes(sequence) || sequence.host.has_value()) return;
  LCKV_CHECK(!sequence.seat.has_value() && sequence.pending.empty());
  // The newest token's row runs in any case: what comes next is drawn from it.
  PrefixBounds bounds{.end = std::min(shareable_end(sequence), sequence.known_end() - 1)};
  const bool scores = sequence.spec->num_prompt_logprobs.has_value() &&
                      sequence.num_scored < sequence.prompt_size();
  if (scores) bounds.end = std::min(bounds.end, sequence.num_scored - 1);
  if (map_.num_groups > 0 && chunk() > 0) {
    bounds.alignment = chunk();
    bounds.aligned_below = sequence.prompt_size();
  }
  const std::vector<int32_t> tokens = sequence.tokens(0, bounds.end);
  const int32_t end = memory_.prefixes.take(tokens, bounds, sequence.place, sequence.table);
  sequence.start_at(end);
}

void Scheduler::Impl::begin_anew(Sequence& sequence) {
  if (!shares_prefixes(sequence) || sequence.host.has_value()) return;
  memory_.deferred.release(sequence.last_step, sequence.table.clear());
  sequence.start_at(0);
  sequence.place = memory_.prefixes.enter(sequence.spec->tenant, sequence.spec->prefix_salt);
}

void Scheduler::Impl::offer_prefix(Sequence& sequence) {
  if (!shares_prefixes(sequence)) return;
  const int32_t end = std::min(shareable_end(sequence), sequence.ordinary.back());
  const int32_t chunk = memory_.prefixes.chunk();
  for (int32_t at = sequence.place.num_tokens(); at + chunk <= end; at += chunk) {
    memory_.prefixes.add(sequence.tokens(at, at + chunk), sequence.table, sequence.place);
  }
}

// Of what a sequence had to run itself the first time, the rows taken are no part.
void Scheduler::Impl::count_prefix(Sequence& sequence) {
  const int32_t num_taken = std::min(sequence.ordinary.front(), sequence.prompt_size());
  for (GroupProgress& group : sequence.groups) {
    group.counted_end = std::max(group.counted_end, num_taken);
  }
  sequence.num_counted = std::max(sequence.num_counted, num_taken);
  if (sequence.started || !shares_prefixes(sequence)) return;
  sequence.num_cached = num_taken;
  if (sequence.spec->num_prompt_logprobs.has_value()) return;
  totals_.num_prefix_queries += sequence.prompt_size();
  totals_.num_prefix_hits += num_taken;
}

}  // namespace lckv
