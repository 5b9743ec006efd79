#include "kernels/cpu/gloo_collectives.h"

#include <gloo/transport/buffer.h>
#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"

namespace lckv {
namespace {

using Clock = std::chrono::steady_clock;

// Up to here all ranks send all they have to all others, which takes one way; beyond, each sums a
// part and sends it on, which takes two and less traffic.
constexpr int64_t kOneWayBytes = int64_t{64} << 10;
// What is longer goes in pieces. A rank writes a piece to every peer before it reads one from any:
// a piece must fit into what the two sockets buffer (tcp_wmem and tcp_rmem: 128 KiB and more).
constexpr int64_t kPieceBytes = int64_t{64} << 10;
// For ever, but for Gloo's sums.
constexpr absl::Duration kLongest = absl::Hours(24 * 365);

// What lies in this rank's memory goes to, or comes from, one peer.
struct Transfer {
  int peer = 0;
  void* data = nullptr;
  int64_t bytes = 0;
};

size_t size_of(const Transfer& transfer) { return static_cast<size_t>(transfer.bytes); }

std::string key_of(const std::string& life, int from, int to) {
  return absl::StrCat("gloo/", life, "/", from, "/", to);
}

// 64-bit FNV-1a.
uint64_t hash_of(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

class GlooCollectives final : public Collectives {
 public:
  explicit GlooCollectives(const GlooOptions& options)
      : rank_(options.rank), size_(options.size), call_timeout_(options.call_timeout) {}

  absl::Status connect(const GlooOptions& options);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status all_reduce(float* data, int64_t count) override;
  absl::Status all_gather(const float* data, int64_t count, float* out) override;
  absl::Status broadcast(void* data, int64_t bytes, int root) override;
  absl::Status barrier() override;
  // Calls return when they are done.
  absl::Status wait() override { return absl::OkStatus(); }
  absl::Status wait_for(absl::FunctionRef<bool()>) override { return absl::OkStatus(); }

 private:
  absl::Status open_pairs(const GlooOptions& options);
  absl::Status connect_pairs(const std::vector<std::string>& addresses);
  absl::Status compare_lives(const GlooOptions& options);
  // Sends and receives to the end or to the first error, on this thread alone. The rank that is
  // furthest behind never waits for room, as its peers have read all it sent before: so none waits
  // for ever.
  absl::Status exchange(const std::vector<Transfer>& receives, const std::vector<Transfer>& sends);
  absl::Status transfer(const std::vector<Transfer>& receives, const std::vector<Transfer>& sends);
  absl::Status reduce_one_way(float* data, int64_t count);
  absl::Status reduce_by_parts(float* data, int64_t count);
  // `sum` = own + what peers sent, by rank; peer p's part lies in incoming_ at its turn.
  void sum_in_order(float* sum, int64_t count);
  float* incoming(int peer, int64_t count) {
    return incoming_.data() + (peer < rank_ ? peer : peer - 1) * count;
  }

  const int rank_;
  const int size_;
  const absl::Duration call_timeout_;
  std::shared_ptr<gloo::transport::Device> device_;
  std::shared_ptr<gloo::transport::Context> context_;  // null after an error
  absl::Status failure_;
  // Of the last exchange: ranks whose calls differ are found out, not mixed up.
  int slot_ = 0;
  std::vector<float> incoming_;  // [size - 1, count]: what peers sent
};

absl::Status GlooCollectives::connect(const GlooOptions& options) {
  const absl::Time deadline = absl::Now() + options.timeout;
  if (absl::Status status = open_pairs(options); !status.ok()) return status;
  std::vector<std::string> addresses(size_);
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    auto address = options.store.get(key_of(options.life, peer, rank_), deadline);
    if (!address.ok()) {
      return absl::Status(
          address.status().code(),
          absl::StrCat("no address of rank ", peer, " within ",
                       absl::FormatDuration(options.timeout), ": ", address.status().message()));
    }
    addresses[peer] = *std::move(address);
  }
  if (absl::Status status = connect_pairs(addresses); !status.ok()) return status;
  return compare_lives(options);
}

absl::Status GlooCollectives::open_pairs(const GlooOptions& options) {
  try {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = options.address;
    device_ = gloo::transport::tcp::CreateDevice(attributes);
    context_ = device_->createContext(rank_, size_);
    // Of every wait for a peer from here on, the one for its connection five times as long.
    context_->setTimeout(std::max(std::chrono::milliseconds(1),
                                  absl::ToChronoMilliseconds(std::min(call_timeout_, kLongest))));
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_) continue;
      const std::vector<char> address = context_->createPair(peer)->address().bytes();
      absl::Status status = options.store.set(key_of(options.life, rank_, peer),
                                              std::string(address.begin(), address.end()));
      if (!status.ok()) return status;
    }
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen at ", options.address, ": ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status GlooCollectives::connect_pairs(const std::vector<std::string>& addresses) {
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    try {
      const std::string& address = addresses[peer];
      const auto& pair = context_->getPair(peer);
      pair->connect({address.begin(), address.end()});
      pair->setSync(true, /*busyPoll=*/false);
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          absl::StrCat("cannot connect with rank ", peer, ": ", error.what()));
    }
  }
  return absl::OkStatus();
}

// A port may have passed from one life to the next between a look-up and its use.
absl::Status GlooCollectives::compare_lives(const GlooOptions& options) {
  uint64_t own = hash_of(absl::StrCat(options.life, "/", size_));
  std::vector<uint64_t> lives(size_, own);
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, &lives[peer], sizeof(uint64_t)});
    sends.push_back({peer, &own, sizeof(uint64_t)});
  }
  if (absl::Status status = exchange(receives, sends); !status.ok()) return status;
  for (int peer = 0; peer < size_; ++peer) {
    if (lives[peer] != own) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", peer, " belongs to another life, or to another number of ranks"));
    }
  }
  return absl::OkStatus();
}

absl::Status GlooCollectives::exchange(const std::vector<Transfer>& receives,
                                       const std::vector<Transfer>& sends) {
  if (!failure_.ok()) return failure_;
  failure_ = transfer(receives, sends);
  if (!failure_.ok()) context_.reset();
  return failure_;
}

absl::Status GlooCollectives::transfer(const std::vector<Transfer>& receives,
                                       const std::vector<Transfer>& sends) {
  slot_ = slot_ == std::numeric_limits<int>::max() ? 0 : slot_ + 1;
  std::vector<std::unique_ptr<gloo::transport::Buffer>> incoming;
  std::vector<std::unique_ptr<gloo::transport::Buffer>> outgoing;
  int64_t longest = 0;
  int peer = rank_;
  const Clock::time_point began = Clock::now();
  try {
    for (const Transfer& receive : receives) {
      incoming.push_back(
          context_->getPair(receive.peer)->createRecvBuffer(slot_, receive.data, size_of(receive)));
      longest = std::max(longest, receive.bytes);
    }
    for (const Transfer& send : sends) {
      outgoing.push_back(
          context_->getPair(send.peer)->createSendBuffer(slot_, send.data, size_of(send)));
      longest = std::max(longest, send.bytes);
    }
    for (int64_t at = 0; at < longest; at += kPieceBytes) {
      for (size_t i = 0; i < sends.size(); ++i) {
        if (at >= sends[i].bytes) continue;
        peer = sends[i].peer;
        outgoing[i]->send(at, std::min(kPieceBytes, sends[i].bytes - at), at);
      }
      for (size_t i = 0; i < receives.size(); ++i) {
        if (at >= receives[i].bytes) continue;
        peer = receives[i].peer;
        incoming[i]->waitRecv();
      }
    }
  } catch (const std::exception& error) {
    if (absl::FromChrono(Clock::now() - began) >= call_timeout_) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", peer, " did not come in time"));
    }
    return absl::UnavailableError(absl::StrCat("rank ", peer, " is gone: ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status GlooCollectives::all_reduce(float* data, int64_t count) {
  const bool one_way = size_ == 2 || count * static_cast<int64_t>(sizeof(float)) <= kOneWayBytes;
  return one_way ? reduce_one_way(data, count) : reduce_by_parts(data, count);
}

absl::Status GlooCollectives::reduce_one_way(float* data, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  incoming_.resize(std::max(incoming_.size(), static_cast<size_t>((size_ - 1) * count)));
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, incoming(peer, count), bytes});
    sends.push_back({peer, data, bytes});
  }
  if (absl::Status status = exchange(receives, sends); !status.ok()) return status;
  sum_in_order(data, count);
  return absl::OkStatus();
}

absl::Status GlooCollectives::reduce_by_parts(float* data, int64_t count) {
  const auto begin = [&](int rank) { return count * rank / size_; };
  const auto bytes = [&](int rank) {
    return (begin(rank + 1) - begin(rank)) * static_cast<int64_t>(sizeof(float));
  };
  const int64_t own_count = begin(rank_ + 1) - begin(rank_);
  incoming_.resize(std::max(incoming_.size(), static_cast<size_t>((size_ - 1) * own_count)));
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, incoming(peer, own_count), bytes(rank_)});
    sends.push_back({peer, data + begin(peer), bytes(peer)});
  }
  if (absl::Status status = exchange(receives, sends); !status.ok()) return status;
  sum_in_order(data + begin(rank_), own_count);
  receives.clear();
  sends.clear();
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, data + begin(peer), bytes(peer)});
    sends.push_back({peer, data + begin(rank_), bytes(rank_)});
  }
  return exchange(receives, sends);
}

void GlooCollectives::sum_in_order(float* sum, int64_t count) {
  constexpr int64_t kTogether = 1024;
  float total[kTogether];
  for (int64_t at = 0; at < count; at += kTogether) {
    const int64_t some = std::min(kTogether, count - at);
    for (int rank = 0; rank < size_; ++rank) {
      const float* const part = (rank == rank_ ? sum : incoming(rank, count)) + at;
      if (rank == 0) {
        std::copy(part, part + some, total);
      } else {
        for (int64_t i = 0; i < some; ++i) total[i] += part[i];
      }
    }
    std::copy(total, total + some, sum + at);
  }
}

absl::Status GlooCollectives::all_gather(const float* data, int64_t count, float* out) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  float* const own = out + rank_ * count;
  if (own != data) std::memcpy(own, data, static_cast<size_t>(bytes));
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, out + peer * count, bytes});
    sends.push_back({peer, own, bytes});
  }
  return exchange(receives, sends);
}

absl::Status GlooCollectives::broadcast(void* data, int64_t bytes, int root) {
  LCKV_CHECK(root >= 0 && root < size_);
  if (rank_ != root) return exchange({{root, data, bytes}}, {});
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer != root) sends.push_back({peer, data, bytes});
  }
  return exchange({}, sends);
}

absl::Status GlooCollectives::barrier() {
  uint8_t here = 1;
  std::vector<uint8_t> there(size_);
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, &there[peer], 1});
    sends.push_back({peer, &here, 1});
  }
  return exchange(receives, sends);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> connect_gloo(const GlooOptions& options) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " of ", options.size, " ranks"));
  }
  std::signal(SIGPIPE, SIG_IGN);
  auto ranks = std::make_unique<GlooCollectives>(options);
  if (absl::Status status = ranks->connect(options); !status.ok()) return status;
  return ranks;
}

}  // namespace lckv
