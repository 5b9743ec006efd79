// Who may call what: bearer tokens from a file.
//
//   {"tokens": [{"token": "…", "tenant": "acme", "rights": ["generate", "admin"]}]}
//
// Several tokens may stand for one tenant, so that one can take the other's place. The file is read
// again when it changes.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/string_ref.h"
#include "router/polled_file.h"

namespace lckv {

enum class Right { kGenerate, kAdmin };  // kGenerate: Inference and Models

struct TokenEntry {
  std::string token;
  std::string tenant;
  bool may_generate = false;
  bool may_admin = false;
};

// At least 16 bytes each, none twice. InvalidArgument naming the key, never a token.
absl::StatusOr<std::vector<TokenEntry>> parse_tokens(absl::string_view text);

struct Caller {
  bool authenticated = false;  // else everyone may everything, and tenants are what callers say
  std::string tenant;
};

// Owner: the router. Thread-safe; poll() on the pulse's thread.
class Access {
 public:
  using Metadata = std::multimap<grpc::string_ref, grpc::string_ref>;

  // Without a path nobody is asked for a token.
  explicit Access(const std::string& path);
  // Reads the file; before anything else. Errors name it and the key.
  absl::Status load();

  // Unauthenticated without a known token, PermissionDenied where it lacks the right. Takes equally
  // long for every token of one length.
  absl::StatusOr<Caller> check(const Metadata& metadata, Right right) const;
  bool asks() const { return file_ != nullptr; }
  void poll(absl::Time now);
  // An older state of the file holds. On the pulse's thread.
  bool stale() const { return file_ != nullptr && file_->stale(); }

 private:
  using Tokens = std::vector<TokenEntry>;
  absl::Status take(const std::string& content);

  std::unique_ptr<PolledFile> file_;
  mutable std::mutex mutex_;  // guards the pointer
  std::shared_ptr<const Tokens> tokens_;
};

}  // namespace lckv
