#include "router/tenants.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "rpc/json_fields.h"
#include "rpc/status_mapping.h"

namespace lckv {
namespace {

// Names that callers make up must not fill the memory.
constexpr size_t kMaxAccounts = 65536;
constexpr size_t kManyAccounts = 1024;
constexpr absl::Duration kForgetInterval = absl::Seconds(1);
constexpr int64_t kMaxLimit = int64_t{1} << 50;

absl::StatusOr<TenantLimits> parse_limits(const nlohmann::json& value, const std::string& path) {
  if (auto status =
          check_object(value, path, {"concurrent_requests", "tokens_per_minute", "max_priority"});
      !status.ok()) {
    return status;
  }
  const auto concurrent = integer(value, path, "concurrent_requests", 0, kMaxLimit);
  if (!concurrent.ok()) return concurrent.status();
  const auto tokens = integer(value, path, "tokens_per_minute", 1, kMaxLimit);
  if (!tokens.ok()) return tokens.status();
  const auto priority = integer(value, path, "max_priority", std::numeric_limits<int32_t>::min(),
                                std::numeric_limits<int32_t>::max());
  if (!priority.ok()) return priority.status();
  return TenantLimits{
      .concurrent_requests = *concurrent, .tokens_per_minute = *tokens, .max_priority = *priority};
}

absl::Status over(const std::string& tenant, const char* limit, int64_t value,
                  absl::Duration delay) {
  return with_retry(absl::ResourceExhaustedError(absl::StrCat(
                        "tenant \"", tenant, "\" is at its limit of ", value, " ", limit)),
                    delay);
}

}  // namespace

absl::StatusOr<TenantTable> parse_tenants(absl::string_view text) {
  const auto json = parse_json(text);
  if (!json.ok()) return json.status();
  if (auto status = check_object(*json, "", {"default", "tenants"}); !status.ok()) return status;
  TenantTable table;
  if (const auto it = json->find("default"); it != json->end()) {
    auto limits = parse_limits(*it, "default");
    if (!limits.ok()) return limits.status();
    table.fallback = *limits;
  }
  if (const auto it = json->find("tenants"); it != json->end()) {
    if (!it->is_object()) return wrong_key("", "tenants", "must be an object");
    for (const auto& [name, value] : it->items()) {
      auto limits = parse_limits(value, absl::StrCat("tenants.", name));
      if (!limits.ok()) return limits.status();
      table.tenants[name] = *limits;
    }
  }
  return table;
}

TenantGate::TenantGate(const std::string& path, TenantHandlers handlers)
    : handlers_(std::move(handlers)) {
  if (path.empty()) return;
  file_ = std::make_unique<PolledFile>(
      path, [this](const std::string& content) { return take(content); });
}

absl::Status TenantGate::load() { return file_ ? file_->load() : absl::OkStatus(); }

absl::Status TenantGate::take(const std::string& content) {
  auto table = parse_tenants(content);
  if (!table.ok()) return table.status();
  std::lock_guard lock(mutex_);
  table_ = *std::move(table);
  running_.try_emplace("other", 0);
  for (const auto& [tenant, limits] : table_.tenants) running_.try_emplace(tenant, 0);
  return absl::OkStatus();
}

const TenantLimits& TenantGate::limits_of(const std::string& tenant) const {
  const auto it = table_.tenants.find(tenant);
  return it == table_.tenants.end() ? table_.fallback : it->second;
}

std::string TenantGate::label_of(const std::string& tenant) const {
  return table_.tenants.contains(tenant) ? tenant : "other";
}

double TenantGate::bucket_of(const TenantLimits& limits) const {
  return static_cast<double>(*limits.tokens_per_minute) / num_routers_;
}

void TenantGate::fill(Account& account, const TenantLimits& limits, absl::Time now) const {
  if (!limits.tokens_per_minute) {
    account = {.num_running = account.num_running};  // a limit that comes later begins with all
    return;
  }
  const double minutes =
      absl::ToDoubleMinutes(std::max(now - account.filled, absl::ZeroDuration()));
  const double bucket = bucket_of(limits);
  account.filled = now;
  account.tokens = std::min(bucket, account.tokens + bucket * minutes);
}

absl::Status TenantGate::admit(const Ask& ask) {
  if (file_ == nullptr) return absl::OkStatus();
  std::string label;
  const char* limit = nullptr;
  absl::Status status;
  {
    std::lock_guard lock(mutex_);
    const TenantLimits& limits = limits_of(ask.tenant);
    label = label_of(ask.tenant);
    // Seldom, so that its time is little of each call's, also where a fleet has many tenants.
    if (accounts_.size() >= std::max(kManyAccounts, 2 * num_kept_) ||
        (accounts_.size() >= kManyAccounts && ask.now >= next_forgetting_)) {
      forget_idle(ask.now);
    }
    if (accounts_.size() >= kMaxAccounts && !accounts_.contains(ask.tenant)) {
      return with_retry(absl::ResourceExhaustedError("too many tenants at once"),
                        absl::Seconds(10));
    }
    Account& account = accounts_[ask.tenant];
    fill(account, limits, ask.now);
    const int64_t share = limits.concurrent_requests
                              ? std::max<int64_t>(*limits.concurrent_requests > 0 ? 1 : 0,
                                                  *limits.concurrent_requests / num_routers_)
                              : 0;
    if (limits.concurrent_requests && account.num_running >= share) {
      limit = "concurrent_requests";
      status = over(ask.tenant, limit, *limits.concurrent_requests, absl::Seconds(1));
    } else if (limits.tokens_per_minute && account.tokens <= 0) {
      limit = "tokens_per_minute";
      const double minutes = (1 - account.tokens) / bucket_of(limits);
      status = over(ask.tenant, limit, *limits.tokens_per_minute, absl::Minutes(minutes));
    } else {
      ++account.num_running;
      account.tokens -= static_cast<double>(ask.num_prompt_tokens);
    }
  }
  if (status.ok()) {
    handlers_.on_tokens(label, ask.num_prompt_tokens);
  } else {
    handlers_.on_rejected(label, limit);
  }
  return status;
}

void TenantGate::release(const std::string& tenant, uint64_t num_new_tokens, absl::Time now) {
  if (file_ == nullptr) return;
  std::string label;
  {
    std::lock_guard lock(mutex_);
    label = label_of(tenant);
    const auto it = accounts_.find(tenant);
    LCKV_CHECK(it != accounts_.end() && it->second.num_running > 0);
    Account& account = it->second;
    fill(account, limits_of(tenant), now);
    --account.num_running;
    account.tokens -= static_cast<double>(num_new_tokens);
  }
  handlers_.on_tokens(label, num_new_tokens);
}

int32_t TenantGate::cap_priority(const std::string& tenant, int32_t priority) {
  if (file_ == nullptr) return priority;
  std::lock_guard lock(mutex_);
  const auto& cap = limits_of(tenant).max_priority;
  return cap ? static_cast<int32_t>(std::min<int64_t>(priority, *cap)) : priority;
}

// Accounts that say no more than new ones would.
void TenantGate::forget_idle(absl::Time now) {
  for (auto it = accounts_.begin(); it != accounts_.end();) {
    const TenantLimits& limits = limits_of(it->first);
    Account& account = it->second;
    fill(account, limits, now);
    const bool full = !limits.tokens_per_minute || account.tokens >= bucket_of(limits);
    it = account.num_running == 0 && full ? accounts_.erase(it) : std::next(it);
  }
  num_kept_ = accounts_.size();
  next_forgetting_ = now + kForgetInterval;
}

// By label, also those that were told before and have none now.
std::map<std::string, int64_t> TenantGate::count_running() {
  for (auto& [label, count] : running_) count = 0;
  for (const auto& [tenant, account] : accounts_) running_[label_of(tenant)] += account.num_running;
  return running_;
}

void TenantGate::tick(absl::Time now, uint32_t num_routers) {
  if (file_ == nullptr) return;
  file_->poll(now);
  std::map<std::string, int64_t> running;
  {
    std::lock_guard lock(mutex_);
    num_routers_ = std::max(1u, num_routers);
    running = count_running();
  }
  for (const auto& [label, count] : running) handlers_.on_running(label, count);
}

}  // namespace lckv
