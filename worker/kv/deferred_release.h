// DeferredRelease: holds on to blocks until every plan that names them is committed.
//
// Plans are numbered from 1 and committed in order. Owner and only thread: the scheduler's.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/check.h"

namespace lckv {

template <class Ref>
class DeferredRelease {
 public:
  // Drops `refs`, the first one first, once step `last_step`, the last one to name them, is
  // committed: now, if it is.
  void release(uint64_t last_step, std::vector<Ref> refs) {
    if (refs.empty()) return;
    if (last_step <= committed_) {
      drop(refs);
    } else {
      held_.push_back({last_step, std::move(refs)});
    }
  }

  void commit(uint64_t step) {
    LCKV_CHECK(step == committed_ + 1);
    committed_ = step;
    for (Held& held : held_) {
      if (held.last_step <= step) drop(held.refs);
    }
    std::erase_if(held_, [](const Held& held) { return held.refs.empty(); });
  }

  uint64_t committed() const { return committed_; }
  bool empty() const { return held_.empty(); }

 private:
  struct Held {
    uint64_t last_step = 0;
    std::vector<Ref> refs;
  };
  static void drop(std::vector<Ref>& refs) {
    for (Ref& ref : refs) const Ref dropped = std::move(ref);
    refs.clear();
  }

  uint64_t committed_ = 0;
  std::vector<Held> held_;
};

}  // namespace lckv
