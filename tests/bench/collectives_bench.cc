// What an all_reduce of a decode step costs over loopback, beside bare sockets that carry the same
// bytes: `collectives_bench [--smoke]`. Ranks are processes.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/check.h"
#include "kernels/cpu/gloo_collectives.h"
#include "tests/bench/lines.h"

namespace lckv {
namespace {

// The hidden state of one row of TinyLlama's shape, float32.
constexpr int64_t kCount = 2048;
constexpr int64_t kBytes = kCount * 4;

// Median seconds of a call.
double time_of(int num_calls, const std::function<void()>& call) {
  std::vector<double> seconds;
  for (int i = 0; i < num_calls; ++i) {
    const absl::Time began = absl::Now();
    call();
    seconds.push_back(absl::ToDoubleSeconds(absl::Now() - began));
  }
  std::nth_element(seconds.begin(), seconds.begin() + num_calls / 2, seconds.end());
  return seconds[num_calls / 2];
}

void write_all(int fd, const char* data) {
  for (int64_t done = 0; done < kBytes;) {
    const ssize_t count = write(fd, data + done, kBytes - done);
    LCKV_CHECK(count > 0);
    done += count;
  }
}

void read_all(int fd, char* data) {
  for (int64_t done = 0; done < kBytes;) {
    const ssize_t count = read(fd, data + done, kBytes - done);
    LCKV_CHECK(count > 0);
    done += count;
  }
}

// Runs body(0) in this process and every other rank in one of its own.
void in_processes(int size, const std::function<void(int)>& body) {
  std::fflush(stdout);
  std::vector<pid_t> children;
  for (int rank = 1; rank < size; ++rank) {
    const pid_t child = fork();
    LCKV_CHECK(child >= 0);
    if (child == 0) {
      body(rank);
      _exit(0);
    }
    children.push_back(child);
  }
  body(0);
  for (const pid_t child : children) {
    int status = 0;
    LCKV_CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
}

// A connected pair over the loopback interface.
std::pair<int, int> connected_sockets() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  LCKV_CHECK(bind(listener, any, length) == 0 && listen(listener, 1) == 0);
  LCKV_CHECK(getsockname(listener, any, &length) == 0);
  const int one = socket(AF_INET, SOCK_STREAM, 0);
  LCKV_CHECK(connect(one, any, length) == 0);
  const int other = accept(listener, nullptr, nullptr);
  LCKV_CHECK(other >= 0);
  close(listener);
  const int on = 1;
  for (const int fd : {one, other}) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return {one, other};
}

// Both sides write, then both read.
double bare_exchange(int num_calls) {
  const auto [one, other] = connected_sockets();
  double seconds = 0;
  in_processes(2, [&, one = one, other = other](int rank) {
    std::vector<char> data(kBytes);
    const double own = time_of(num_calls, [&, fd = rank == 0 ? one : other] {
      write_all(fd, data.data());
      read_all(fd, data.data());
    });
    if (rank == 0) seconds = own;
  });
  close(one);
  close(other);
  return seconds;
}

// Addresses of ranks as files of a folder.
RendezvousStore store_in(const std::string& folder) {
  const auto path = [folder](std::string key) {
    std::replace(key.begin(), key.end(), '/', '_');
    return absl::StrCat(folder, "/", key);
  };
  return {
      .set =
          [path](const std::string& key, std::string bytes) {
            const std::string name = path(key);
            std::FILE* const file = std::fopen(absl::StrCat(name, ".new").c_str(), "w");
            LCKV_CHECK(file != nullptr);
            LCKV_CHECK(std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
            std::fclose(file);
            LCKV_CHECK(std::rename(absl::StrCat(name, ".new").c_str(), name.c_str()) == 0);
            return absl::OkStatus();
          },
      .get = [path](const std::string& key, absl::Time deadline) -> absl::StatusOr<std::string> {
        while (absl::Now() < deadline) {
          if (std::FILE* const file = std::fopen(path(key).c_str(), "r")) {
            std::string bytes(4096, '\0');
            bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
            std::fclose(file);
            return bytes;
          }
          absl::SleepFor(absl::Milliseconds(1));
        }
        return absl::DeadlineExceededError(key);
      }};
}

double all_reduce(int size, int num_calls) {
  std::string folder = std::filesystem::temp_directory_path() / "lckv-collectives-XXXXXX";
  LCKV_CHECK(mkdtemp(folder.data()) != nullptr);
  double seconds = 0;
  in_processes(size, [&](int rank) {
    auto ranks = connect_gloo({.rank = rank,
                               .size = size,
                               .address = "127.0.0.1",
                               .life = "bench",
                               .store = store_in(folder)});
    LCKV_CHECK(ranks.ok());
    std::vector<float> data(kCount);
    const double own =
        time_of(num_calls, [&] { LCKV_CHECK((*ranks)->all_reduce(data.data(), kCount).ok()); });
    if (rank == 0) seconds = own;
  });
  std::filesystem::remove_all(folder);
  return seconds;
}

void run(bool smoke) {
  if (smoke) leave_goals_out();
  const int num_calls = smoke ? 200 : 20000;
  print_heading("all_reduce of one row's hidden state, 8 KiB, ranks on one host");
  const double bare = bare_exchange(num_calls) * 1e6;
  print({"2 ranks", all_reduce(2, num_calls) * 1e6, "us", "bare sockets", bare, at_most(2)});
  print({"4 ranks", all_reduce(4, num_calls) * 1e6, "us", "bare sockets", bare, {}});
  print_summary();
}

}  // namespace
}  // namespace lckv

int main(int argc, char** argv) {
  lckv::run(argc > 1 && std::strcmp(argv[1], "--smoke") == 0);
  return 0;
}
