// From nothing to the first token, and what a worker's memory holds: `start_bench WORKER
// [--smoke]`, from the source root. Starts the real program and speaks to it as a router does.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/create_channel.h"
#include "lckv/internal/v1/engine.grpc.pb.h"
#include "rpc/server_options.h"
#include "tests/bench/child_process.h"
#include "tests/bench/lines.h"

namespace lckv {
namespace {

using internal::v1::Hello;
using internal::v1::RouterFrame;
using internal::v1::WorkerFrame;

constexpr double kMemoryBytes = 4.0 * (1ULL << 30);

// A worker of dummy weights.
std::vector<std::string> worker_command(const std::string& program, const std::string& folder,
                                        int port) {
  return {program,       "--model",       folder,   "--load-format",     "dummy",
          "--dtype",     "bfloat16",      "--port", absl::StrCat(port),  "--metrics-port",
          "0",           "--health-port", "0",      "--kv-cache-memory", "4GiB",
          "--log-level", "warning"};
}

struct Start {
  absl::Duration first_token;
  Hello hello;
};

Start start_worker(const std::string& program, const std::string& folder) {
  const int port = bench::free_port();
  const absl::Time began = absl::Now();
  const bench::ChildProcess process(worker_command(program, folder, port));
  const auto channel =
      grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                grpc::InsecureChannelCredentials(), internal_channel_arguments());
  const auto stub = internal::v1::Engine::NewStub(channel);
  grpc::ClientContext call;
  call.set_wait_for_ready(true);
  call.set_deadline(absl::ToChronoTime(began + absl::Minutes(2)));
  const auto stream = stub->Session(&call);
  RouterFrame frame;
  frame.mutable_open()->set_router_id("bench");
  stream->Write(frame);
  Start start;
  WorkerFrame answer;
  while (stream->Read(&answer)) {
    if (answer.has_hello()) {
      start.hello = answer.hello();
      internal::v1::Submit& submit = *frame.mutable_submit();
      submit.set_handle(1);
      for (uint32_t id = 3; id < 11; ++id) submit.add_prompt(id);
      submit.set_max_new_tokens(1);
      submit.mutable_sampling()->set_top_p(1);
      submit.mutable_sampling()->set_repetition_penalty(1);
      stream->Write(frame);
    }
    if (answer.step().token_size() > 0) {
      start.first_token = absl::Now() - began;
      call.TryCancel();
      return start;
    }
  }
  std::fprintf(stderr, "%s: no token: %s\n", folder.c_str(),
               stream->Finish().error_message().c_str());
  std::exit(1);
}

void print_start(const std::string& map, const Start& start) {
  print({absl::StrCat(map, ": start to first token"), absl::ToDoubleSeconds(start.first_token), "s",
         "", 0, at_most(10)});
  const double formula = kMemoryBytes / start.hello.kv_bytes_per_token();
  const auto capacity = static_cast<double>(start.hello.kv_capacity_tokens());
  print({absl::StrCat(map, ": capacity at 4GiB"), capacity, "tokens", "memory/bytes per token",
         formula, at_least(0.99)});
}

void run(const std::string& program, bool smoke) {
  if (smoke) leave_goals_out();
  const std::string models = "tests/bench/models/";
  print_heading("lckv-worker with dummy weights, bfloat16");
  const Start ordinary = start_worker(program, models + (smoke ? "demo-ordinary" : "tinyllama"));
  print_start("ordinary map", ordinary);
  const Start lckv =
      start_worker(program, smoke ? "deploy/models/demo" : models + "tinyllama-lckv");
  print_start("LCKV map", lckv);
  print({"capacity of the LCKV map", static_cast<double>(lckv.hello.kv_capacity_tokens()), "tokens",
         "ordinary map", static_cast<double>(ordinary.hello.kv_capacity_tokens()), at_least(7.32)});
  print_summary();
}

}  // namespace
}  // namespace lckv

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: start_bench WORKER [--smoke]\n");
    return 2;
  }
  lckv::run(argv[1], argc > 2 && std::strcmp(argv[2], "--smoke") == 0);
  return 0;
}
