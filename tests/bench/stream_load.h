// StreamLoad: a steady number of Generate streams at one address; each that ends is followed by the
// next. Measures how late tokens come.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/bench/emissions.h"

namespace lckv::bench {

struct StreamLoadOptions {
  uint16_t port = 0;  // of the loopback interface
  int num_streams = 1;
  int num_connections = 8;
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

// gRPC's wire format over nghttp2, on one thread: what the streams cost on this side is to be
// little beside what lies between, and gRPC 1.51 answers every message that it reads with a window
// update and a system call of its own. Owner: the measurement.
class StreamLoad {
 public:
  // `emissions` outlives it.
  StreamLoad(const StreamLoadOptions& options, const Emissions& emissions);
  ~StreamLoad();

  // What has come since the last call.
  Delivered take();

 private:
  class Reader;
  const std::unique_ptr<Reader> reader_;
};

}  // namespace lckv::bench
