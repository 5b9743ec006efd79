// RankWatch: the watchdog of one rank and its voice towards the launcher.
//
// A thread of its own looks at the loop's progress, pulses, and ends the process where a turn of
// the loop or a layer of its step takes too long, or where its device fails: with the one line that
// says why, which is the launcher's to print where there is one. Owner: main, which has one. Every
// method may be called from any thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/engine/rank_progress.h"
#include "worker/group/rank_record.h"

namespace lckv {

// Why a replica ends.
struct RankFailure {
  int rank = 0;  // who is to blame
  uint64_t step = 0;
  std::string operation;
  std::string why;
  // The failure of a peer as this rank saw it: who looks at the peer itself knows better.
  bool second_hand = false;
};

// The one line.
void log_failure(const RankFailure& failure);

// What waits until --start-timeout says better why it did so in vain: the watch leaves it that
// much.
inline constexpr absl::Duration kStartSlack = absl::Seconds(5);

struct RankWatchOptions {
  int rank = 0;
  int pipe = -1;  // to the launcher; -1: none
  absl::Duration step_timeout = absl::Seconds(60);
  absl::Duration start_timeout = absl::InfiniteDuration();  // until the loop's first turn
};

class RankWatch {
 public:
  // `progress` must outlive it.
  RankWatch(const RankWatchOptions& options, const RankProgress& progress);
  ~RankWatch();
  RankWatch(const RankWatch&) = delete;
  RankWatch& operator=(const RankWatch&) = delete;

  void listening(uint16_t port);
  // Called once, and waited for no longer than a moment, before fail() ends the process.
  void set_last_words(std::function<void(const RankFailure&)> last_words);
  // Ends the process with exit code 1. The first call counts.
  [[noreturn]] void fail(const RankFailure& failure);
  // The same about this rank itself and what it is doing now. Unavailable, DeadlineExceeded and
  // Cancelled are taken for the failure of another rank.
  [[noreturn]] void fail(const absl::Status& why);

 private:
  void loop();
  void write(const RankRecord& record, absl::Duration patience) const;
  RankFailure failure_here(const std::string& why) const;

  const RankWatchOptions options_;
  const RankProgress& progress_;

  std::mutex failing_;  // held for good by the first fail()
  std::mutex mutex_;    // guards the next three
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::function<void(const RankFailure&)> last_words_;
  std::thread thread_;
};

}  // namespace lckv
