// ChildProcess: a program that a measurement starts, looks at and ends.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace lckv::bench {

// Of the loopback interface; nobody else's yet.
uint16_t free_port();

class ChildProcess {
 public:
  explicit ChildProcess(const std::vector<std::string>& command);
  // SIGTERM, and waits.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  void send(int signal) const;
  // User and system time so far.
  double cpu_seconds() const;
  double resident_bytes() const;

 private:
  pid_t pid_ = -1;
};

// The same of this process.
double own_cpu_seconds();

}  // namespace lckv::bench
