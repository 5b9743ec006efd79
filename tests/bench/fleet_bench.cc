// What a router adds to each token, beside a relay that does nothing else: `lckv_fleet_bench ROUTER
// [--smoke]`, from the source root.
//
// One process holds the simulated replicas and reads the streams; the router runs in another. A
// token's latency is from the moment that its engine reports it to the moment that the client has
// it; the bare relay's is from its source's write on. Both carry the same load, one after the
// other.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "rpc/lock_checks.h"
#include "rpc/logging.h"
#include "tests/bench/bare_relay.h"
#include "tests/bench/child_process.h"
#include "tests/bench/emissions.h"
#include "tests/bench/lines.h"
#include "tests/bench/simulated_fleet.h"
#include "tests/bench/stream_load.h"

namespace lckv::bench {
namespace {

struct FleetLoad {
  int num_replicas = 100;
  int num_streams = 1000;
  int repetitions = 5;
  absl::Duration warm_up = absl::Seconds(4);
  absl::Duration measured = absl::Seconds(8);
  // 50 tokens per second and stream.
  absl::Duration step = absl::Milliseconds(20);
};

// Of one repetition.
struct Latency {
  double p50_us = 0;
  double p99_us = 0;
  double tokens_per_second = 0;
  double tokens_per_event = 0;
  double cpu_share = 0;        // of all cores, by all processes
  double router_us_token = 0;  // CPU of the middle process per token
};

double percentile_us(std::vector<int64_t>& nanoseconds, double share) {
  if (nanoseconds.empty()) return 0;
  const auto at = nanoseconds.begin() +
                  static_cast<int64_t>(share * static_cast<double>(nanoseconds.size() - 1));
  std::nth_element(nanoseconds.begin(), at, nanoseconds.end());
  return static_cast<double>(*at) * 1e-3;
}

template <typename Field>
double median_of(const std::vector<Latency>& runs, Field field) {
  std::vector<double> values;
  for (const Latency& run : runs) values.push_back(run.*field);
  return median(values);
}

// Streams through `middle`, which listens at `port`.
Latency measure(const FleetLoad& load, uint16_t port, const ChildProcess& middle,
                const Emissions& emissions) {
  StreamLoad streams({.port = port, .num_streams = load.num_streams}, emissions);
  absl::SleepFor(load.warm_up);
  streams.take();
  const double middle_before = middle.cpu_seconds();
  const double own_before = own_cpu_seconds();
  const absl::Time began = absl::Now();
  absl::SleepFor(load.measured);
  Delivered delivered = streams.take();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - began);
  const double middle_cpu = middle.cpu_seconds() - middle_before;
  const double own_cpu = own_cpu_seconds() - own_before;
  if (delivered.failures > 0 || delivered.tokens == 0) {
    std::fprintf(stderr, "%s streams failed: %s\n", absl::StrCat(delivered.failures).c_str(),
                 delivered.first_failure.c_str());
    std::exit(1);
  }
  const auto tokens = static_cast<double>(delivered.tokens);
  return {.p50_us = percentile_us(delivered.latencies, 0.5),
          .p99_us = percentile_us(delivered.latencies, 0.99),
          .tokens_per_second = tokens / seconds,
          .tokens_per_event = tokens / static_cast<double>(delivered.events),
          .cpu_share = (middle_cpu + own_cpu) / seconds / std::thread::hardware_concurrency(),
          .router_us_token = middle_cpu * 1e6 / tokens};
}

std::vector<std::string> router_command(const std::string& program, uint16_t port,
                                        const SimulatedFleet& fleet) {
  return {program,       "--workers",        fleet.addresses(),
          "--port",      absl::StrCat(port), "--metrics-port",
          "0",           "--health-port",    "0",
          "--log-level", "warning",          "--max-queue",
          "4096"};
}

void print_latency(const std::string& name, const std::vector<Latency>& runs) {
  print({absl::StrCat(name, ": tokens per second"),
         median_of(runs, &Latency::tokens_per_second),
         "1/s",
         "",
         0,
         {}});
  print({absl::StrCat(name, ": added latency p50"),
         median_of(runs, &Latency::p50_us),
         "us",
         "",
         0,
         {}});
  print({absl::StrCat(name, ": added latency p99"),
         median_of(runs, &Latency::p99_us),
         "us",
         "",
         0,
         {}});
}

// At a rate that all can keep up with.
void compare(const FleetLoad& load, const std::string& router, const std::string& self) {
  print_heading(absl::StrFormat(
      "%d streams of %d simulated replicas at %.0f tokens/s each; median of %d", load.num_streams,
      load.num_replicas, 1 / absl::ToDoubleSeconds(load.step), load.repetitions));
  Emissions emissions(load.num_streams);
  const PacedSource source(load.num_replicas, load.step, emissions);
  const uint16_t relay_port = free_port();
  const ChildProcess relay({self, "--relay", absl::StrCat(relay_port), source.address()});
  const SimulatedFleet fleet(
      {.model = "deploy/models/demo", .num_replicas = load.num_replicas, .step = load.step},
      emissions);
  const uint16_t router_port = free_port();
  const ChildProcess middle(router_command(router, router_port, fleet));
  absl::SleepFor(absl::Seconds(2));
  const double idle_bytes = middle.resident_bytes();
  std::vector<Latency> bare;
  std::vector<Latency> routed;
  double busy_bytes = 0;
  for (int i = 0; i < load.repetitions; ++i) {
    bare.push_back(measure(load, relay_port, relay, emissions));
    routed.push_back(measure(load, router_port, middle, emissions));
    busy_bytes = std::max(busy_bytes, middle.resident_bytes());
  }
  print_latency("bare relay", bare);
  print_latency("router", routed);
  const double bare_p99 = median_of(bare, &Latency::p99_us);
  print({"router: added latency p50", median_of(routed, &Latency::p50_us), "us", "150 us", 150,
         at_most(1)});
  print({"router: added latency p99", median_of(routed, &Latency::p99_us), "us",
         "max(1 ms, 2 bare relays)", std::max(1000.0, 2 * bare_p99), at_most(1)});
  print({"share of all CPUs, all processes", median_of(routed, &Latency::cpu_share), "", "", 0,
         at_most(0.7)});
  print({"router: CPU per token",
         median_of(routed, &Latency::router_us_token),
         "us",
         "bare relay",
         median_of(bare, &Latency::router_us_token),
         {}});
  print({"router: memory per stream",
         (busy_bytes - idle_bytes) / load.num_streams / 1024,
         "KiB",
         "",
         0,
         {}});
}

// Replicas that give more than anybody can pass on.
void saturate(const FleetLoad& load, const std::string& router) {
  print_heading(
      absl::StrFormat("%d streams of replicas that are faster than the router", load.num_streams));
  Emissions emissions(load.num_streams);
  const SimulatedFleet fleet({.model = "deploy/models/demo",
                              .num_replicas = std::max(load.num_replicas / 25, 1),
                              .max_num_seqs = load.num_streams,
                              .step = absl::Milliseconds(4)},
                             emissions);
  const uint16_t port = free_port();
  const ChildProcess middle(router_command(router, port, fleet));
  absl::SleepFor(absl::Seconds(2));
  std::vector<Latency> runs;
  for (int i = 0; i < load.repetitions; ++i) {
    runs.push_back(measure(load, port, middle, emissions));
  }
  print({"tokens per second", median_of(runs, &Latency::tokens_per_second), "1/s", "", 0, {}});
  print({"router: CPU per delivered token", median_of(runs, &Latency::router_us_token), "us",
         "20 us", 20, at_most(1)});
  print({"router: tokens per write", median_of(runs, &Latency::tokens_per_event), "", "", 0, {}});
}

int run(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "--relay") == 0) {
    run_bare_relay(static_cast<uint16_t>(std::atoi(argv[2])), argv[3]);
    return 0;
  }
  if (argc < 2) {
    std::fprintf(stderr, "usage: lckv_fleet_bench ROUTER [--smoke]\n");
    return 2;
  }
  FleetLoad load;
  if (argc > 2 && std::strcmp(argv[2], "--smoke") == 0) {
    leave_goals_out();
    load = {.num_replicas = 4,
            .num_streams = 20,
            .repetitions = 1,
            .warm_up = absl::Seconds(1),
            .measured = absl::Seconds(1)};
  }
  compare(load, argv[1], argv[0]);
  saturate(load, argv[1]);
  print_summary();
  return 0;
}

}  // namespace
}  // namespace lckv::bench

int main(int argc, char** argv) {
  lckv::leave_lock_checks_out();
  return lckv::bench::run(argc, argv);
}
