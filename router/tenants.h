// What each tenant may take: calls at once, tokens a minute, priority.
//
//   {"default": {"concurrent_requests": 8},
//    "tenants": {"acme": {"concurrent_requests": 64, "tokens_per_minute": 600000,
//                         "max_priority": 5}}}
//
// What is absent is not limited. "default" holds for every tenant that is not listed, each on its
// own. Limits are of the whole fleet: each router grants its share of them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/polled_file.h"

namespace lckv {

struct TenantLimits {
  std::optional<int64_t> concurrent_requests;
  std::optional<int64_t> tokens_per_minute;  // prompt and generated
  std::optional<int64_t> max_priority;       // requests that ask for more get this
};

struct TenantTable {
  TenantLimits fallback;
  std::map<std::string, TenantLimits> tenants;
};

// InvalidArgument naming the key.
absl::StatusOr<TenantTable> parse_tenants(absl::string_view text);

// What a tenant does, for metrics; `tenant` is one of the file's, or "other".
struct TenantHandlers {
  std::function<void(const std::string& tenant, int64_t count)> on_running;  // calls now
  std::function<void(const std::string& tenant, const char* limit)> on_rejected;
  std::function<void(const std::string& tenant, uint64_t count)> on_tokens;
};

// Owner: the router. Thread-safe; tick() on the pulse's thread. Tokens are a bucket that holds a
// minute's worth: a call is let in while it is not empty, and then takes what it needs, so that the
// calls behind it wait the longer. A call's prompt is taken at its start, what it generated at its
// end.
class TenantGate {
 public:
  // Without a path nothing is limited.
  TenantGate(const std::string& path, TenantHandlers handlers);
  // Reads the file; before anything else. Errors name it and the key.
  absl::Status load();

  struct Ask {
    std::string tenant;
    uint64_t num_prompt_tokens = 0;
    absl::Time now;
  };
  // ResourceExhausted with RetryInfo, naming the limit; else each call is to be released once.
  absl::Status admit(const Ask& ask);
  void release(const std::string& tenant, uint64_t num_new_tokens, absl::Time now);
  // `priority`, or the tenant's highest where that is less.
  int32_t cap_priority(const std::string& tenant, int32_t priority);

  // Reads the file again where it is due. `num_routers` share the limits.
  void tick(absl::Time now, uint32_t num_routers);
  bool limits() const { return file_ != nullptr; }
  // An older state of the file holds. On the pulse's thread.
  bool stale() const { return limits() && file_->stale(); }

 private:
  struct Account {
    int64_t num_running = 0;
    double tokens = 0;                         // left in the bucket; negative: owed
    absl::Time filled = absl::InfinitePast();  // when `tokens` was right
  };

  absl::Status take(const std::string& content);
  const TenantLimits& limits_of(const std::string& tenant) const;
  std::string label_of(const std::string& tenant) const;
  double bucket_of(const TenantLimits& limits) const;
  void fill(Account& account, const TenantLimits& limits, absl::Time now) const;
  std::map<std::string, int64_t> count_running();
  void forget_idle(absl::Time now);

  const TenantHandlers handlers_;
  std::unique_ptr<PolledFile> file_;  // null: nothing is limited
  std::mutex mutex_;                  // guards what follows
  TenantTable table_;
  uint32_t num_routers_ = 1;
  std::map<std::string, Account> accounts_;
  size_t num_kept_ = 0;  // when idle accounts were last forgotten
  absl::Time next_forgetting_ = absl::InfinitePast();
  std::map<std::string, int64_t> running_;  // by label, as it was last told
};

}  // namespace lckv
