// Compares the routing policies on one skewed trace, with one router and with three.
#include <iostream>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "tests/bench/routed_fleet.h"

int main(int argc, char** argv) {
  lckv::TraceOptions trace_options;
  std::vector<double> rates = {60, 100, 140};
  CLI::App app("Routing policies over a modelled fleet of 8 replicas", "lckv_routing_bench");
  app.add_option("--requests", trace_options.num_requests, "Of each run")->capture_default_str();
  app.add_option("--seed", trace_options.seed, "Of the trace")->capture_default_str();
  app.add_option("--rates", rates, "Requests per second")->delimiter(',')->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  std::cout << "policy                routers  rate  ttft_p50_ms  ttft_p99_ms  tokens_per_s  "
               "prefix_hit  max_over_mean_p99\n";
  for (const double rate : rates) {
    trace_options.requests_per_second = rate;
    const auto trace = lckv::draw_trace(trace_options);
    for (const size_t num_routers : {size_t{1}, size_t{3}}) {
      for (const std::string& policy : lckv::policy_names()) {
        // A key rules the choice of the other hashing policy too, and no key that of this.
        const auto report =
            lckv::run_routed_fleet(trace, {.policy = policy,
                                           .sends_affinity = policy == "affinity-key",
                                           .num_routers = num_routers});
        std::cout << absl::StreamFormat(
            "%-20s  %7d  %4.0f  %11.1f  %11.1f  %12.0f  %10.3f  %17.2f\n", policy, num_routers,
            rate, report.ttft_p50 * 1e3, report.ttft_p99 * 1e3, report.tokens_per_second,
            report.prefix_hit_rate, report.imbalance_p99);
      }
    }
  }
  return 0;
}
