// Preemption: who gives up what it holds when memory runs out.
//
// Nothing is taken from a sequence that an uncommitted plan names; the plan in the making then
// takes no more rows until those plans are committed. The first in rank never gives way, so it
// always goes on.
#include <algorithm>

#include "kernels/check.h"
#include "worker/scheduler/scheduler_impl.h"

namespace lckv {

// In the order they give way: paused ones, then the others that `needs` outranks, each last in rank
// first. Who only waits for a seat takes from none of its own priority.
std::vector<Sequence*> Scheduler::Impl::victims(const Sequence& needs) const {
  std::vector<Sequence*> order;
  for (auto it = seated_.rbegin(); it != seated_.rend(); ++it) {
    if ((*it)->paused && *it != &needs) order.push_back(*it);
  }
  for (auto it = seated_.rbegin(); it != seated_.rend(); ++it) {
    if ((*it)->paused || *it == &needs) continue;
    const bool gives_way = needs.seat.has_value() ? outranks(needs, **it)
                                                  : needs.spec->priority > (*it)->spec->priority;
    if (gives_way) order.push_back(*it);
  }
  return order;
}

bool Scheduler::Impl::make_room(Planning& planning, const Sequence& needs, int32_t num_blocks) {
  if (num_blocks <= memory_.blocks.num_free()) return true;
  const std::vector<Sequence*> order = victims(needs);
  if (num_obtainable(order) < num_blocks) return false;
  for (Sequence* victim : order) {
    if (in_flight(*victim)) {
      planning.blocked = true;
      return false;
    }
    preempt(planning, *victim);
    planning.evicted = planning.evicted || needs.seat.has_value();
    if (num_blocks <= memory_.blocks.num_free()) return true;
  }
  return false;
}

// A block that several share is free when the last of them drops it.
int32_t Scheduler::Impl::num_obtainable(const std::vector<Sequence*>& victims) const {
  int32_t obtainable = memory_.blocks.num_free();
  std::unordered_map<int32_t, int32_t> num_dropped;  // by block
  for (const Sequence* victim : victims) {
    for (int32_t u = 0; u < victim->table.num_units(); ++u) {
      for (const BlockRef& block : victim->table.blocks(UnitId{u})) {
        if (++num_dropped[raw(block.id())] == memory_.blocks.num_holds(block.id())) ++obtainable;
      }
    }
  }
  return obtainable;
}

bool Scheduler::Impl::evict_paused(Planning& planning) {
  const auto last = std::find_if(seated_.rbegin(), seated_.rend(), [this](const Sequence* held) {
    return held->paused && !in_flight(*held);
  });
  if (last == seated_.rend()) return false;
  preempt(planning, **last);
  return true;
}

void Scheduler::Impl::vacate_seats(Planning& planning) {
  // A paused one gives way to anybody, when it comes to that.
  const bool any_paused = std::any_of(seated_.begin(), seated_.end(),
                                      [](const Sequence* held) { return held->paused; });
  if (any_paused) return;
  while (!seated_.empty()) {
    Sequence& last = *seated_.back();
    const auto num_free = static_cast<int32_t>(free_seats_.size());
    if (queue_.num_above(last.spec->priority, num_free + 1) <= num_free) return;
    if (in_flight(last)) {
      planning.blocked = true;
      return;
    }
    preempt(planning, last);
  }
}

// One may hold the staging rows that another waits for, which holds the blocks that the first
// lacks. The first in rank is served first in the next plan, so that giving way was of use.
void Scheduler::Impl::break_deadlock(Planning& planning) {
  const auto first = std::find_if(seated_.begin(), seated_.end(),
                                  [](const Sequence* sequence) { return !sequence->paused; });
  if (first == seated_.end()) return;
  const std::vector<Sequence*> order = victims(**first);
  if (order.empty()) return;
  planning.starved = (*first)->id;
  preempt(planning, *order.front());
}

void Scheduler::Impl::preempt(Planning& planning, Sequence& victim) {
  LCKV_CHECK(!in_flight(victim) && !victim.awaits_walk && victim.pending.empty());
  give_staging_back(victim);
  victim.blocks_held = victim.table.num_blocks();
  int32_t restart = map_.num_groups > 0 ? victim.restart_position(chunk()) : 0;
  if (restart > 0) {
    for (int32_t u = 0; u < victim.table.num_units(); ++u) {
      memory_.deferred.release(victim.last_step, victim.table.truncate(UnitId{u}, restart));
    }
    if (victim.table.num_blocks() > memory_.host_blocks.num_free()) restart = 0;
  }
  if (restart > 0) {
    planning.builder.copy_to_host(victim);
    ++totals_.num_swapped_out;
  }
  // Nothing uncommitted names these blocks, and copies to the host go before whatever reuses them.
  memory_.deferred.release(victim.last_step, victim.table.clear());
  if (victim.host.has_value()) victim.last_step = planning.builder.step();
  victim.restart_at(restart);
  if (restart == 0) begin_anew(victim);
  victim.lookahead_limit = 0;
  ++victim.num_preemptions;
  ++totals_.num_preemptions;
  planning.builder.close(unseat(victim));
  queue_.push(victim);
}

}  // namespace lckv
