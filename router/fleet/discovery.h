// Where replicas may be: the addresses of --workers and of the file --models, names looked up.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "router/fleet/models_file.h"
#include "router/fleet/name_resolver.h"
#include "rpc/watched_file.h"

namespace lckv {

struct DiscoveryOptions {
  std::vector<std::string> workers;
  std::string models_file;  // empty: none
  // How often the file is looked at.
  absl::Duration poll_interval = absl::Seconds(1);
  // How often names are looked up again, each time up to a quarter sooner or later by chance.
  absl::Duration resolve_interval = absl::Seconds(10);
  // A lookup that takes longer is reported, and its name keeps what is known.
  absl::Duration resolve_timeout = absl::Seconds(5);
  // A name that has no address for so long has none: a model was scaled to zero, say.
  absl::Duration believe_empty_after = absl::Minutes(1);
  ResolveFunction resolve = resolve_with_system;
};

struct Candidate {
  std::string address;  // numeric
  std::string origin;   // the host:port that it was found by
  std::string model;    // that it must serve; empty: any
};

struct Candidates {
  std::vector<Candidate> replicas;  // each address once
  std::vector<std::string> models;  // expected, with or without replicas
};

// Owner: the router. A thread of its own looks after the file; each name that is due is looked up
// on a thread that nobody waits for, at most one per name. Errors leave what is known, and so do
// empty answers until they have been the same for a while; each is logged once.
class Discovery {
 public:
  // Reads the file, and says the first candidates (without names) before it returns; later ones
  // come on its own thread. InvalidArgument or NotFound, naming file and key.
  static absl::StatusOr<std::unique_ptr<Discovery>> start(
      const DiscoveryOptions& options, std::function<void(Candidates)> on_candidates);
  ~Discovery();  // as stop()
  Discovery(const Discovery&) = delete;
  Discovery& operator=(const Discovery&) = delete;

  // After it nothing is called any more. Idempotent.
  void stop();
  // What the file says now could not be taken over. Any thread.
  bool stale() const { return stale_; }

 private:
  struct Answer {
    std::string origin;
    absl::StatusOr<std::vector<std::string>> addresses;
  };
  // What lookups share with their asker, which may be gone when they end.
  struct Mailbox {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Answer> answers;
    bool stopped = false;
  };
  struct Name {
    std::vector<std::string> addresses;     // that are believed
    std::optional<absl::Time> empty_since;  // all answers
    std::optional<absl::Time> asked;        // a lookup is under way since then
    absl::Time due = absl::InfinitePast();
    std::string last_error;
  };

  Discovery(const DiscoveryOptions& options, std::function<void(Candidates)> on_candidates);
  absl::Status read_models(bool& changed);
  absl::Status take_over(const absl::StatusOr<std::string>& content);
  void run();
  bool note(const Answer& answer, absl::Time now);
  void report(const std::string& origin, const std::string& error);
  void ask(absl::Time now);
  void name_all();
  void publish();

  const DiscoveryOptions options_;
  const std::function<void(Candidates)> on_candidates_;
  WatchedFile file_;
  // The thread's own once it runs.
  std::vector<ExpectedModel> models_;
  std::map<std::string, Name> names_;  // by host:port
  std::minstd_rand jitter_;

  std::atomic<bool> stale_ = false;
  const std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  std::thread thread_;
};

}  // namespace lckv
