#include "worker/group/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "rpc/logging.h"
#include "worker/group/rank_record.h"
#include "worker/group/rank_watch.h"

namespace lckv {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(100);
// A rank is heard of first when its program has started: under load that takes its time.
constexpr absl::Duration kFirstPulse = absl::Seconds(60);
// Whose peer dies notices sooner than we do: before one is blamed, all have so long to be heard.
constexpr absl::Duration kHearAll = absl::Milliseconds(300);
// Once one has ended in order, the others follow.
constexpr absl::Duration kEndTogether = absl::Seconds(15);
// The kernel's part after SIGKILL.
constexpr absl::Duration kReap = absl::Seconds(10);
constexpr int kExecFailed = 127;

sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, signal);
  return set;
}

// Of a process to end.
bool is_request(int signal) { return signal == SIGTERM || signal == SIGINT; }

struct Rank {
  int number = 0;
  pid_t pid = -1;
  int pipe = -1;  // from it; -1: closed
  absl::Time heard;
  bool pulsed = false;
  uint64_t step = 0;
  std::string operation = "start";
  std::optional<RankFailure> failure;  // what it said itself
  std::optional<int> status;           // as waitpid gives it
};

std::string describe_end(int status) {
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    const char* name = sigabbrev_np(signal);
    return name == nullptr ? absl::StrCat("killed by signal ", signal)
                           : absl::StrCat("killed by SIG", name);
  }
  return absl::StrCat("ended with exit code ", WEXITSTATUS(status));
}

class Launcher {
 public:
  explicit Launcher(const LaunchOptions& options) : options_(options), leader_(options.leader) {}
  int run();

 private:
  void start_ranks();
  bool start(int number);
  [[noreturn]] void become_rank(int number, int pipe, pid_t parent);
  void wait_for_events();
  void take_signals();
  void read_records(Rank& rank);
  void take(Rank& rank, const RankRecord& record);
  void reap();
  void signal_all(int signal);
  void kill_all();
  bool all_ended() const;
  bool is_told_to_end() const { return stop_by_ != absl::InfiniteFuture(); }
  // What ends the replica before its time, as far as is known now.
  std::optional<RankFailure> find_failure() const;
  RankFailure failure_of(const Rank& rank, std::string why) const;

  const LaunchOptions& options_;
  std::string leader_;  // with the port that ranks connect to
  int signals_ = -1;
  sigset_t mask_before_{};
  std::vector<Rank> ranks_;
  bool all_started_ = false;
  absl::Time stop_by_ = absl::InfiniteFuture();
  absl::Time first_end_ = absl::InfiniteFuture();  // of a rank
};

int Launcher::run() {
  const sigset_t set = watched_signals();
  sigprocmask(SIG_BLOCK, &set, &mask_before_);
  signals_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  start_ranks();
  absl::Time failed = absl::InfiniteFuture();
  while (!(all_started_ && all_ended())) {
    wait_for_events();
    start_ranks();
    const absl::Time now = absl::Now();
    if (!find_failure().has_value()) continue;
    failed = std::min(failed, now);
    if (now - failed >= kHearAll) break;
  }
  for (Rank& rank : ranks_) read_records(rank);
  const std::optional<RankFailure> failure = find_failure();
  kill_all();
  if (!failure.has_value()) return 0;
  log_failure(*failure);
  return 1;
}

// Ranks other than the leader are started once the leader's port is known.
void Launcher::start_ranks() {
  if (all_started_) return;
  if (is_told_to_end() || first_end_ != absl::InfiniteFuture()) {
    all_started_ = true;  // as far as ever
    return;
  }
  const bool port_known = leader_.substr(leader_.rfind(':')) != ":0";
  while (static_cast<int>(ranks_.size()) < options_.num_ranks) {
    const int number = options_.first_rank + static_cast<int>(ranks_.size());
    if (number > 0 && !port_known) return;
    if (!start(number)) break;
  }
  all_started_ = true;
}

bool Launcher::start(int number) {
  Rank& rank = ranks_.emplace_back();
  rank.number = number;
  rank.heard = absl::Now();
  int ends[2];
  const pid_t parent = getpid();
  if (pipe2(ends, O_CLOEXEC) == 0) {
    rank.pid = fork();
    if (rank.pid == 0) become_rank(number, ends[1], parent);
    close(ends[1]);
    rank.pipe = ends[0];
    fcntl(rank.pipe, F_SETFL, O_NONBLOCK);
  }
  if (rank.pid > 0) return true;
  rank.failure = failure_of(rank, absl::StrCat("cannot be started: ", std::strerror(errno)));
  return false;
}

void Launcher::become_rank(int number, int pipe, pid_t parent) {
  // Whatever becomes of the launcher, its ranks go with it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kExecFailed);
  // What a terminal signals goes to the launcher alone, which passes it on.
  setpgid(0, 0);
  sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
  fcntl(pipe, F_SETFD, 0);
  std::vector<std::string> arguments = {"lckv-worker"};
  arguments.insert(arguments.end(), options_.arguments.begin(), options_.arguments.end());
  for (const std::string& argument :
       {std::string("--rank"), absl::StrCat(number), std::string("--leader"), leader_,
        std::string("--first-rank"), absl::StrCat(options_.first_rank), std::string("--life"),
        options_.life, std::string("--launcher-pipe"), absl::StrCat(pipe)}) {
    arguments.push_back(argument);
  }
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  execv("/proc/self/exe", argv.data());
  _exit(kExecFailed);
}

void Launcher::wait_for_events() {
  std::vector<pollfd> events = {{.fd = signals_, .events = POLLIN}};
  for (const Rank& rank : ranks_) events.push_back({.fd = rank.pipe, .events = POLLIN});
  poll(events.data(), events.size(), static_cast<int>(absl::ToInt64Milliseconds(kLook)));
  take_signals();
  for (Rank& rank : ranks_) read_records(rank);
  reap();
}

void Launcher::take_signals() {
  signalfd_siginfo info;
  while (read(signals_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGCHLD) continue;
    if (!is_told_to_end()) stop_by_ = absl::Now() + options_.stop_timeout;
    signal_all(static_cast<int>(info.ssi_signo));
  }
}

void Launcher::read_records(Rank& rank) {
  while (rank.pipe >= 0) {
    RankRecord record;
    const ssize_t got = read(rank.pipe, &record, sizeof(record));
    if (got == sizeof(record)) {
      take(rank, record);
      continue;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    close(rank.pipe);
    rank.pipe = -1;
  }
}

void Launcher::take(Rank& rank, const RankRecord& record) {
  rank.heard = absl::Now();
  rank.pulsed = true;
  switch (record.kind) {
    case RankRecord::Kind::kPulse:
      rank.step = record.step;
      rank.operation = record.operation;
      break;
    case RankRecord::Kind::kListening:
      leader_ = absl::StrCat(leader_.substr(0, leader_.rfind(':') + 1), record.port);
      break;
    case RankRecord::Kind::kFailed:
      rank.failure = RankFailure{.rank = record.rank,
                                 .step = record.step,
                                 .operation = record.operation,
                                 .why = record.why,
                                 .second_hand = record.second_hand};
      break;
  }
}

void Launcher::reap() {
  int status = 0;
  // Of any child: as PID 1 we are everybody's parent.
  for (pid_t pid = 0; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    for (Rank& rank : ranks_) {
      if (rank.pid != pid) continue;
      rank.status = status;
      first_end_ = std::min(first_end_, absl::Now());
    }
  }
}

void Launcher::signal_all(int signal) {
  for (const Rank& rank : ranks_) {
    if (rank.pid > 0 && !rank.status.has_value()) kill(rank.pid, signal);
  }
}

void Launcher::kill_all() {
  signal_all(SIGKILL);
  for (const absl::Time deadline = absl::Now() + kReap; !all_ended() && absl::Now() < deadline;) {
    wait_for_events();
  }
}

bool Launcher::all_ended() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const Rank& rank) { return rank.pid <= 0 || rank.status.has_value(); });
}

RankFailure Launcher::failure_of(const Rank& rank, std::string why) const {
  return {
      .rank = rank.number, .step = rank.step, .operation = rank.operation, .why = std::move(why)};
}

std::optional<RankFailure> Launcher::find_failure() const {
  const absl::Time now = absl::Now();
  std::optional<RankFailure> silent, said, hearsay, code, late;
  for (const Rank& rank : ranks_) {
    // A signal from outside is the cause of all else, but for the one that we passed on.
    if (rank.status.has_value() && WIFSIGNALED(*rank.status) &&
        !(is_told_to_end() && is_request(WTERMSIG(*rank.status)))) {
      return failure_of(rank, describe_end(*rank.status));
    }
    if (rank.failure.has_value()) (rank.failure->second_hand ? hearsay : said) = rank.failure;
    if (rank.status.has_value()) {
      if (WIFEXITED(*rank.status) && WEXITSTATUS(*rank.status) != 0 && !rank.failure.has_value()) {
        code = failure_of(rank, describe_end(*rank.status));
      }
      continue;
    }
    if (now > stop_by_) late = failure_of(rank, "told to end, it did not in time");
    if (now - first_end_ > kEndTogether) late = failure_of(rank, "it did not end with the others");
    const absl::Duration limit = rank.pulsed ? options_.rank_timeout : kFirstPulse;
    if (now - rank.heard > limit) {
      silent = failure_of(
          rank, absl::StrCat("silent for ", absl::FormatDuration(limit), " (--rank-timeout)"));
    }
  }
  // Ranks that are told to end may lose each other.
  if (is_told_to_end()) hearsay.reset();
  for (const auto& failure : {said, code, silent, hearsay, late}) {
    if (failure.has_value()) return failure;
  }
  return std::nullopt;
}

}  // namespace

int launch(const LaunchOptions& options) { return Launcher(options).run(); }

}  // namespace lckv
