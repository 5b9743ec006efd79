// The Generate calls that have not ended.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

namespace lckv {

class GenerateCall;

// Owner: the router. Thread-safe.
class CallRegistry {
 public:
  // False where `max_calls` are here already.
  bool admit(const std::shared_ptr<GenerateCall>& call, size_t max_calls) {
    std::lock_guard lock(mutex_);
    return calls_.size() < max_calls && calls_.insert(call).second;
  }
  void remove(const std::shared_ptr<GenerateCall>& call) {
    std::lock_guard lock(mutex_);
    calls_.erase(call);
  }
  std::vector<std::shared_ptr<GenerateCall>> all() {
    std::lock_guard lock(mutex_);
    return {calls_.begin(), calls_.end()};
  }

 private:
  std::mutex mutex_;  // guards calls_
  std::unordered_set<std::shared_ptr<GenerateCall>> calls_;
};

}  // namespace lckv
