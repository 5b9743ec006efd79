// StreamLoad: a steady number of Generate streams at one address; each that ends is followed by the
// next. Measures how late tokens come.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lckv/v1/inference.grpc.pb.h"
#include "tests/bench/emissions.h"

namespace lckv::bench {

struct StreamLoadOptions {
  std::string address;
  std::string model;  // may be empty
  int num_streams = 1;
  int num_channels = 8;
  uint32_t num_tokens = 400;  // of a stream
};

struct Delivered {
  uint64_t tokens = 0;
  uint64_t events = 0;   // that carried tokens
  uint64_t streams = 0;  // that ended well
  uint64_t failures = 0;
  std::string first_failure;
  std::vector<int64_t> latencies;  // nanoseconds, of each token
};

// Owner and thread: the measurement's. Its streams run on gRPC's threads.
class StreamLoad {
 public:
  // `emissions` outlives it.
  StreamLoad(const StreamLoadOptions& options, const Emissions& emissions);
  ~StreamLoad();

  // What has come since the last call.
  Delivered take();

 private:
  class Stream;
  friend class Stream;
  struct Shared;
  const std::unique_ptr<Shared> shared_;
  std::vector<std::unique_ptr<Stream>> streams_;
};

}  // namespace lckv::bench
