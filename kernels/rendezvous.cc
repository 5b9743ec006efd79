#include "kernels/rendezvous.h"

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace lckv {
namespace {

class Values {
 public:
  absl::Status set(const std::string& key, std::string bytes) {
    {
      const std::lock_guard lock(mutex_);
      if (!values_.emplace(key, std::move(bytes)).second) {
        return absl::AlreadyExistsError(absl::StrCat(key, " was set before"));
      }
    }
    changed_.notify_all();
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> get(const std::string& key, absl::Time deadline) {
    std::unique_lock lock(mutex_);
    const auto wait = absl::ToChronoMicroseconds(deadline - absl::Now());
    if (!changed_.wait_for(lock, wait, [&] { return values_.contains(key); })) {
      return absl::DeadlineExceededError(absl::StrCat("nobody set ", key));
    }
    return values_.at(key);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
};

}  // namespace

RendezvousStore rendezvous_in_memory() {
  const auto values = std::make_shared<Values>();
  return {.set = [values](const std::string& key,
                          std::string bytes) { return values->set(key, std::move(bytes)); },
          .get = [values](const std::string& key,
                          absl::Time deadline) { return values->get(key, deadline); }};
}

}  // namespace lckv
