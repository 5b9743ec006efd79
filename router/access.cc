#include "router/access.h"

#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "rpc/json_fields.h"

namespace lckv {
namespace {

constexpr size_t kMinTokenBytes = 16;
constexpr size_t kMaxTokens = 1024;

// Takes as long as `given` is, wherever the two differ.
bool equal_in_constant_time(absl::string_view given, absl::string_view known) {
  volatile unsigned char difference = given.size() == known.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    const char other = known[i % known.size()];
    difference = difference | static_cast<unsigned char>(given[i] ^ other);
  }
  return difference == 0;
}

absl::StatusOr<TokenEntry> parse_token(const nlohmann::json& value, const std::string& path) {
  if (auto s = check_object(value, path, {"token", "tenant", "rights"}); !s.ok()) return s;
  TokenEntry entry;
  auto token = needed_string(value, path, "token");
  if (!token.ok()) return token.status();
  entry.token = *std::move(token);
  if (entry.token.size() < kMinTokenBytes) {
    return wrong_key(path, "token", absl::StrCat("must have ", kMinTokenBytes, " bytes or more"));
  }
  auto tenant = needed_string(value, path, "tenant");
  if (!tenant.ok()) return tenant.status();
  entry.tenant = *std::move(tenant);
  const auto rights = needed_list(value, path, "rights");
  if (!rights.ok()) return rights.status();
  for (size_t i = 0; i < (*rights)->size(); ++i) {
    const nlohmann::json& right = (**rights)[i];
    if (right == "generate") {
      entry.may_generate = true;
    } else if (right == "admin") {
      entry.may_admin = true;
    } else {
      return wrong_key(path, absl::StrCat("rights[", i, "]"), "must be \"generate\" or \"admin\"");
    }
  }
  return entry;
}

}  // namespace

absl::StatusOr<std::vector<TokenEntry>> parse_tokens(absl::string_view text) {
  const auto json = parse_json(text);
  // Its message would quote the file.
  if (!json.ok()) return absl::InvalidArgumentError("is no JSON");
  if (auto status = check_object(*json, "", {"tokens"}); !status.ok()) return status;
  const auto entries = needed_list(*json, "", "tokens");
  if (!entries.ok()) return entries.status();
  if ((*entries)->size() > kMaxTokens) {
    return wrong_key("", "tokens", absl::StrCat("more than ", kMaxTokens, " entries"));
  }
  std::vector<TokenEntry> tokens;
  std::set<std::string> known;
  for (size_t i = 0; i < (*entries)->size(); ++i) {
    const std::string path = absl::StrCat("tokens[", i, "]");
    auto entry = parse_token((**entries)[i], path);
    if (!entry.ok()) return entry.status();
    if (!known.insert(entry->token).second) return wrong_key(path, "token", "is here twice");
    tokens.push_back(*std::move(entry));
  }
  return tokens;
}

Access::Access(const std::string& path) {
  if (path.empty()) return;
  file_ = std::make_unique<PolledFile>(
      path, [this](const std::string& content) { return take(content); });
}

absl::Status Access::load() { return file_ ? file_->load() : absl::OkStatus(); }

absl::Status Access::take(const std::string& content) {
  auto tokens = parse_tokens(content);
  if (!tokens.ok()) return tokens.status();
  std::lock_guard lock(mutex_);
  tokens_ = std::make_shared<const Tokens>(*std::move(tokens));
  return absl::OkStatus();
}

absl::StatusOr<Caller> Access::check(const Metadata& metadata, Right right) const {
  if (file_ == nullptr) return Caller();
  std::shared_ptr<const Tokens> tokens;
  {
    std::lock_guard lock(mutex_);
    tokens = tokens_;
  }
  const auto header = metadata.find("authorization");
  absl::string_view given;
  if (header != metadata.end()) given = {header->second.data(), header->second.size()};
  if (given.size() < 7 || !absl::EqualsIgnoreCase(given.substr(0, 7), "bearer ")) {
    return absl::UnauthenticatedError("a bearer token is needed: authorization: Bearer TOKEN");
  }
  given.remove_prefix(7);
  const TokenEntry* found = nullptr;
  for (const TokenEntry& entry : *tokens) {
    if (equal_in_constant_time(given, entry.token)) found = &entry;
  }
  if (found == nullptr) return absl::UnauthenticatedError("the bearer token is not known");
  if (!(right == Right::kAdmin ? found->may_admin : found->may_generate)) {
    return absl::PermissionDeniedError(absl::StrCat(
        "the token lacks the right \"", right == Right::kAdmin ? "admin" : "generate", "\""));
  }
  return Caller{.authenticated = true, .tenant = found->tenant};
}

void Access::poll(absl::Time now) {
  if (file_) file_->poll(now);
}

}  // namespace lckv
