// A router under more than its replicas can serve, and beside one that stands still:
// `lckv_overload_bench ROUTER [--smoke]`, from the source root. Replicas are simulated.
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "rpc/lock_checks.h"
#include "tests/bench/bare_relay.h"
#include "tests/bench/child_process.h"
#include "tests/bench/emissions.h"
#include "tests/bench/lines.h"
#include "tests/bench/open_load.h"
#include "tests/bench/simulated_fleet.h"
#include "tests/bench/stream_number.h"
#include "worker/service/session.h"

namespace lckv::bench {
namespace {

constexpr int kNumReplicas = 4;
constexpr int kSeats = 16;  // of each
constexpr uint32_t kTokens = 50;
constexpr absl::Duration kStep = absl::Milliseconds(10);
// Where a router is stopped: a stream is to outlast that within the model's context.
constexpr absl::Duration kLongStep = absl::Milliseconds(20);
constexpr absl::Duration kDeadline = absl::Seconds(3);
constexpr absl::Duration kPatience = absl::Minutes(3);  // where no call is to run out of time
constexpr int kHeld = 16;                               // long streams of a router that is stopped
constexpr int kNumNumbers = 1000;
constexpr double kMemoryGrowth = 1.5;  // of a router, where its memory is bounded

enum Kind { kOrdinary, kUrgent };

struct Durations {
  absl::Duration unloaded = absl::Seconds(10);
  absl::Duration capacity = absl::Seconds(10);
  absl::Duration overload = absl::Seconds(60);
  absl::Duration stopped = absl::Seconds(30);  // longer than a lease
  int stops = 5;
};

SimulatedFleetOptions fleet_options(const std::string& model, absl::Duration step) {
  return {.model = model, .num_replicas = kNumReplicas, .max_num_seqs = kSeats, .step = step};
}

v1::GenerateRequest request_of(int number, Kind kind) {
  v1::GenerateRequest request;
  for (const uint32_t id : prompt_of(static_cast<size_t>(number) % kNumNumbers)) {
    request.mutable_token_ids()->add_ids(id);
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_new_tokens(kTokens);
  request.set_priority(kind == kUrgent ? 5 : 0);
  return request;
}

double milliseconds(std::vector<absl::Duration> values, double share) {
  if (values.empty()) return 0;
  const auto at =
      values.begin() + static_cast<int64_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return absl::ToDoubleMilliseconds(*at);
}

std::vector<absl::Duration> first_tokens(const std::vector<CallOutcome>& outcomes, Kind kind) {
  std::vector<absl::Duration> found;
  for (const CallOutcome& outcome : outcomes) {
    if (outcome.kind == kind && outcome.code == grpc::StatusCode::OK) {
      found.push_back(outcome.first_token);
    }
  }
  return found;
}

int64_t num_ok(const std::vector<CallOutcome>& outcomes, absl::Time until) {
  return std::count_if(outcomes.begin(), outcomes.end(), [until](const CallOutcome& outcome) {
    return outcome.code == grpc::StatusCode::OK && outcome.ended <= until;
  });
}

// A router of its own for the fleet.
struct RoutedFleet {
  explicit RoutedFleet(const std::string& program, const SimulatedFleet& fleet)
      : port(free_port()),
        process({program, "--workers", fleet.addresses(), "--port", absl::StrCat(port),
                 "--metrics-port", "0", "--health-port", "0", "--log-level", "error"}) {}
  std::string address() const { return absl::StrCat("127.0.0.1:", port); }

  const uint16_t port;
  const ChildProcess process;
};

// p99 of calls that a bare relay's source answers at once, at that rate.
double measure_relay(const std::string& self, double rate, absl::Duration duration) {
  Emissions emissions(kNumNumbers);
  const PacedSource source(1, absl::Seconds(1), emissions);
  const uint16_t port = free_port();
  const ChildProcess relay({self, "--relay", absl::StrCat(port), source.address()});
  OpenLoad load(absl::StrCat("127.0.0.1:", port));
  absl::SleepFor(absl::Seconds(1));
  v1::GenerateRequest request = request_of(0, kOrdinary);
  request.mutable_stopping()->set_max_new_tokens(0);
  OpenLoad::pace(rate, duration, [&](int) { load.start(kOrdinary, request, kDeadline); });
  std::vector<absl::Duration> totals;
  for (const CallOutcome& outcome : load.finish()) totals.push_back(outcome.total);
  return milliseconds(std::move(totals), 0.99);
}

// Calls per second of a fleet whose seats are all taken: as many calls as seats, each followed by
// the next.
double measure_capacity(OpenLoad& load, absl::Duration duration) {
  const double exact = kNumReplicas * kSeats / (kTokens * absl::ToDoubleSeconds(kStep));
  // Somewhat more than it can take, with time enough to wait.
  OpenLoad::pace(exact * 1.1, duration,
                 [&](int i) { load.start(kOrdinary, request_of(i, kOrdinary), duration * 4); });
  const absl::Time began = absl::Now() - duration;
  const auto outcomes = load.finish();
  const absl::Time end = absl::Now();
  return static_cast<double>(num_ok(outcomes, end)) / absl::ToDoubleSeconds(end - began);
}

void overload(const std::string& router, const std::string& self, const Durations& durations) {
  print_heading("5 times what 4 simulated replicas can serve, 1 % of it urgent");
  Emissions emissions(kNumNumbers);
  const SimulatedFleet fleet(fleet_options("deploy/models/demo", kStep), emissions);
  const RoutedFleet routed(router, fleet);
  OpenLoad load(routed.address());
  absl::SleepFor(absl::Seconds(2));
  OpenLoad::pace(10, durations.unloaded,
                 [&](int i) { load.start(kUrgent, request_of(i, kUrgent), kDeadline); });
  const double unloaded = milliseconds(first_tokens(load.finish(), kUrgent), 0.99);
  const double capacity = measure_capacity(load, durations.capacity);
  const double before = routed.process.resident_bytes();
  const absl::Time began = absl::Now();
  OpenLoad::pace(5 * capacity, durations.overload, [&](int i) {
    const Kind kind = i % 100 == 0 ? kUrgent : kOrdinary;
    load.start(kind, request_of(i, kind), kDeadline);
  });
  const absl::Time end = absl::Now();
  const double after = routed.process.resident_bytes();
  const std::vector<CallOutcome> outcomes = load.finish();
  std::vector<absl::Duration> rejections;
  int64_t num_silent = 0;
  int64_t num_late = 0;
  for (const CallOutcome& outcome : outcomes) {
    const bool out_of_time = outcome.code == grpc::StatusCode::DEADLINE_EXCEEDED;
    if (out_of_time && !outcome.says_when_to_retry) ++num_late;
    const bool rejected = outcome.code == grpc::StatusCode::RESOURCE_EXHAUSTED ||
                          (out_of_time && outcome.says_when_to_retry);
    if (!rejected) continue;
    rejections.push_back(outcome.total);
    num_silent += outcome.says_when_to_retry ? 0 : 1;
  }
  const double relay = measure_relay(self, 5 * capacity, durations.capacity);
  print({"bare relay: time to an answer, p99", relay, "ms", "", 0, {}});
  print({"capacity", capacity, "calls/s", "", 0, {}});
  // What ends later is no part of what was served meanwhile.
  print({"goodput", static_cast<double>(num_ok(outcomes, end)) / absl::ToDoubleSeconds(end - began),
         "calls/s", "capacity", capacity, at_least(0.95)});
  print({"rejected",
         static_cast<double>(rejections.size()),
         "calls",
         "all",
         static_cast<double>(outcomes.size()),
         {}});
  print({"past their deadline",
         static_cast<double>(num_late),
         "calls",
         "all",
         static_cast<double>(outcomes.size()),
         {}});
  print({"rejected without RetryInfo and pushback", static_cast<double>(num_silent), "calls", "", 0,
         at_most(0)});
  print({"time to a rejection, p99", milliseconds(rejections, 0.99), "ms",
         "max(10 ms, 3 bare relays)", std::max(10.0, 3 * relay), at_most(1)});
  print({"urgent calls: TTFT p50",
         milliseconds(first_tokens(outcomes, kUrgent), 0.5),
         "ms",
         "",
         0,
         {}});
  print({"urgent calls: TTFT p99", milliseconds(first_tokens(outcomes, kUrgent), 0.99), "ms",
         "1.2 x unloaded + a step", 1.2 * unloaded + absl::ToDoubleMilliseconds(kStep),
         at_most(1)});
  print({"router's memory", after / 1e6, "MB", "before the overload", before / 1e6,
         at_most(kMemoryGrowth)});
}

// Takes kHeld seats of the fleet for so long: returns once they are taken.
void hold_seats(OpenLoad& load, const SimulatedFleet& fleet, absl::Duration duration) {
  for (int i = 0; i < kHeld; ++i) {
    v1::GenerateRequest request = request_of(i, kOrdinary);
    request.mutable_stopping()->set_max_new_tokens(static_cast<uint32_t>(duration / kLongStep));
    request.mutable_stopping()->set_ignore_eos(true);
    load.start(kOrdinary, request, kPatience);
  }
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (fleet.num_sequences() < kHeld) {
    LCKV_CHECK(absl::Now() < deadline);
    absl::SleepFor(kLongStep);
  }
}

// p99 of the gaps between tokens of the streams of `load`, which fill half of the fleet; `beside`
// has a quarter as many.
double gaps_beside(OpenLoad& load, OpenLoad& beside, absl::Duration duration) {
  const double rate = 0.5 * kNumReplicas * kSeats / (kTokens * absl::ToDoubleSeconds(kLongStep));
  OpenLoad::pace(rate, duration, [&](int i) {
    load.start(kOrdinary, request_of(i, kOrdinary), kPatience);
    if (i % 4 == 0) beside.start(kOrdinary, request_of(i, kOrdinary), kPatience);
  });
  std::vector<absl::Duration> gaps;
  for (const CallOutcome& outcome : load.finish()) {
    LCKV_CHECK(outcome.code == grpc::StatusCode::OK);
    gaps.insert(gaps.end(), outcome.gaps.begin(), outcome.gaps.end());
  }
  return milliseconds(std::move(gaps), 0.99);
}

void isolation(const std::string& router, const Durations& durations) {
  print_heading(
      "one of two routers of a fleet is stopped; the other's streams, in turns with both");
  Emissions emissions(kNumNumbers);
  // Contexts long enough for streams that outlast a lease.
  const SimulatedFleet fleet(fleet_options("tests/bench/models/tinyllama", kLongStep), emissions);
  const RoutedFleet well(router, fleet);
  const RoutedFleet stopped(router, fleet);
  OpenLoad load(well.address());
  OpenLoad others(stopped.address());
  absl::SleepFor(absl::Seconds(2));
  std::vector<double> undisturbed;
  std::vector<double> disturbed;
  double memory_before = 0;
  double memory = 0;  // the most at the end of a stop
  int num_left = 0;
  int64_t num_unfinished = 0;
  for (int round = 0; round < durations.stops; ++round) {
    // The same load in both turns: leaders keep the seats of a router that is stopped for a lease,
    // and what it would have been given goes through the other.
    hold_seats(others, fleet, std::min(SessionOptions().silence_limit, durations.stopped));
    undisturbed.push_back(gaps_beside(load, others, durations.stopped));
    others.finish();
    if (round == 0) memory_before = well.process.resident_bytes();
    hold_seats(others, fleet, durations.stopped + absl::Seconds(5));
    stopped.process.send(SIGSTOP);
    disturbed.push_back(gaps_beside(load, load, durations.stopped));
    // All streams of the router that is well have ended.
    num_left = std::max(num_left, fleet.num_sequences());
    memory = std::max(memory, well.process.resident_bytes());
    stopped.process.send(SIGCONT);
    const std::vector<CallOutcome> held = others.finish();
    num_unfinished += kHeld - num_ok(held, absl::InfiniteFuture());
  }
  print({"ITL p99", median(disturbed), "ms", "undisturbed", median(undisturbed), at_most(1.2)});
  print({absl::StrCat("sequences of the stopped router that are left, of ", kHeld),
         static_cast<double>(num_left), "", "", 0, at_most(0)});
  print({"its streams that do not end well once it goes on", static_cast<double>(num_unfinished),
         "", "", 0, at_most(0)});
  print({"router's memory", memory / 1e6, "MB", "before the first stop", memory_before / 1e6,
         at_most(kMemoryGrowth)});
}

int run(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "--relay") == 0) {
    run_bare_relay(static_cast<uint16_t>(std::atoi(argv[2])), argv[3]);
    return 0;
  }
  if (argc < 2) {
    std::fprintf(stderr, "usage: lckv_overload_bench ROUTER [--smoke]\n");
    return 2;
  }
  Durations durations;
  if (argc > 2 && std::strcmp(argv[2], "--smoke") == 0) {
    leave_goals_out();
    durations = {.unloaded = absl::Seconds(1),
                 .capacity = absl::Seconds(2),
                 .overload = absl::Seconds(3),
                 .stopped = absl::Seconds(2),
                 .stops = 1};
  }
  overload(argv[1], argv[0], durations);
  isolation(argv[1], durations);
  print_summary();
  return 0;
}

}  // namespace
}  // namespace lckv::bench

int main(int argc, char** argv) {
  lckv::leave_lock_checks_out();
  return lckv::bench::run(argc, argv);
}
