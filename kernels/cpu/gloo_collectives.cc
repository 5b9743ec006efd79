#include "kernels/cpu/gloo_collectives.h"

#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"

namespace lckv {
namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// Up to here all ranks send all they have to all others, which takes one way; beyond, each sums a
// part and sends it on, which takes two and less traffic.
constexpr int64_t kOneWayBytes = int64_t{64} << 10;
// A broadcast goes in pieces, so that no socket buffers a whole tensor.
constexpr int64_t kBroadcastBytes = int64_t{4} << 20;
// Once all addresses are known, connecting takes as long as the slowest rank takes to fetch them.
constexpr absl::Duration kConnectTimeout = absl::Seconds(10);
// Gloo waits five times a pair's timeout for its connection.
constexpr int64_t kGlooConnectFactor = 5;

// What lies in this rank's memory goes to, or comes from, one peer.
struct Transfer {
  int peer = 0;
  void* data = nullptr;
  int64_t bytes = 0;
};

Clock::time_point deadline_of(absl::Duration timeout) {
  // Far enough for ever, near enough to be added to any clock.
  return Clock::now() + absl::ToChronoMilliseconds(std::min(timeout, absl::Hours(24 * 365)));
}

// At least one: to Gloo, none is no deadline.
Milliseconds left_until(Clock::time_point deadline) {
  return std::max(Milliseconds(1), std::chrono::ceil<Milliseconds>(deadline - Clock::now()));
}

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
  GlooCollectives(int rank, int size) : rank_(rank), size_(size) {}

  absl::Status connect(const GlooOptions& options);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status all_reduce(float* data, int64_t count, absl::Duration timeout) override;
  absl::Status all_gather(const float* data, int64_t count, float* out,
                          absl::Duration timeout) override;
  absl::Status broadcast(void* data, int64_t bytes, int root, absl::Duration timeout) override;
  absl::Status barrier(absl::Duration timeout) override;

 private:
  absl::Status open_pairs(const GlooOptions& options, Clock::time_point deadline);
  absl::Status connect_pairs(const std::vector<std::string>& addresses);
  absl::Status compare_lives(const GlooOptions& options, Clock::time_point deadline);
  // Receives and sends, all at once, to the end or to the first error.
  absl::Status exchange(const std::vector<Transfer>& receives, const std::vector<Transfer>& sends,
                        Clock::time_point deadline);
  absl::Status post_and_wait(const std::vector<Transfer>& receives,
                             const std::vector<Transfer>& sends, Clock::time_point deadline);
  absl::Status reduce_one_way(float* data, int64_t count, Clock::time_point deadline);
  absl::Status reduce_by_parts(float* data, int64_t count, Clock::time_point deadline);
  // `sum` = own + what peers sent, by rank; peer p's part lies in incoming_ at its turn.
  void sum_in_order(float* sum, int64_t count);
  float* incoming(int peer, int64_t count) {
    return incoming_.data() + (peer < rank_ ? peer : peer - 1) * count;
  }

  const int rank_;
  const int size_;
  std::shared_ptr<gloo::transport::Device> device_;
  std::shared_ptr<gloo::transport::Context> context_;  // null after an error
  absl::Status failure_;
  // Of the next exchange: what comes late can never be taken for what comes next.
  uint64_t slot_ = 0;
  std::vector<float> incoming_;  // [size - 1, count]: what peers sent
};

absl::Status GlooCollectives::connect(const GlooOptions& options) {
  const Clock::time_point deadline = deadline_of(options.timeout);
  if (absl::Status status = open_pairs(options, deadline); !status.ok()) return status;
  std::vector<std::string> addresses(size_);
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    const absl::Time until = absl::Now() + absl::FromChrono(deadline - Clock::now());
    auto address = options.store.get(key_of(options.life, peer, rank_), until);
    if (!address.ok()) {
      return absl::Status(
          address.status().code(),
          absl::StrCat("no address of rank ", peer, " within ",
                       absl::FormatDuration(options.timeout), ": ", address.status().message()));
    }
    addresses[peer] = *std::move(address);
  }
  if (absl::Status status = connect_pairs(addresses); !status.ok()) return status;
  return compare_lives(options, deadline);
}

absl::Status GlooCollectives::open_pairs(const GlooOptions& options, Clock::time_point deadline) {
  try {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = options.address;
    device_ = gloo::transport::tcp::CreateDevice(attributes);
    context_ = device_->createContext(rank_, size_);
    const Milliseconds timeout =
        std::min(left_until(deadline), absl::ToChronoMilliseconds(kConnectTimeout));
    context_->setTimeout(std::max(Milliseconds(1), timeout / kGlooConnectFactor));
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
      context_->getPair(peer)->connect({address.begin(), address.end()});
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          absl::StrCat("cannot connect with rank ", peer, ": ", error.what()));
    }
  }
  return absl::OkStatus();
}

// A port may have passed from one life to the next between a look-up and its use.
absl::Status GlooCollectives::compare_lives(const GlooOptions& options,
                                            Clock::time_point deadline) {
  uint64_t own = hash_of(absl::StrCat(options.life, "/", size_));
  std::vector<uint64_t> lives(size_, own);
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, &lives[peer], sizeof(uint64_t)});
    sends.push_back({peer, &own, sizeof(uint64_t)});
  }
  if (absl::Status status = exchange(receives, sends, deadline); !status.ok()) return status;
  for (int peer = 0; peer < size_; ++peer) {
    if (lives[peer] != own) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", peer, " belongs to another life, or to another number of ranks"));
    }
  }
  return absl::OkStatus();
}

absl::Status GlooCollectives::exchange(const std::vector<Transfer>& receives,
                                       const std::vector<Transfer>& sends,
                                       Clock::time_point deadline) {
  if (!failure_.ok()) return failure_;
  failure_ = post_and_wait(receives, sends, deadline);
  if (!failure_.ok()) context_.reset();
  return failure_;
}

absl::Status GlooCollectives::post_and_wait(const std::vector<Transfer>& receives,
                                            const std::vector<Transfer>& sends,
                                            Clock::time_point deadline) {
  using Buffer = std::unique_ptr<gloo::transport::UnboundBuffer>;
  const uint64_t slot = slot_++;
  std::vector<Buffer> incoming;
  std::vector<Buffer> outgoing;
  int peer = rank_;
  try {
    for (const Transfer& receive : receives) {
      peer = receive.peer;
      incoming.push_back(
          context_->createUnboundBuffer(receive.data, static_cast<size_t>(receive.bytes)));
      incoming.back()->recv(peer, slot);
    }
    for (const Transfer& send : sends) {
      peer = send.peer;
      outgoing.push_back(context_->createUnboundBuffer(send.data, static_cast<size_t>(send.bytes)));
      outgoing.back()->send(peer, slot);
    }
    for (size_t i = 0; i < receives.size(); ++i) {
      peer = receives[i].peer;
      incoming[i]->waitRecv(left_until(deadline));
    }
    for (size_t i = 0; i < sends.size(); ++i) {
      peer = sends[i].peer;
      outgoing[i]->waitSend(left_until(deadline));
    }
  } catch (const std::exception& error) {
    if (Clock::now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", peer, " did not come in time"));
    }
    return absl::UnavailableError(absl::StrCat("rank ", peer, " is gone: ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status GlooCollectives::all_reduce(float* data, int64_t count, absl::Duration timeout) {
  const Clock::time_point deadline = deadline_of(timeout);
  const bool one_way = size_ == 2 || count * static_cast<int64_t>(sizeof(float)) <= kOneWayBytes;
  return one_way ? reduce_one_way(data, count, deadline) : reduce_by_parts(data, count, deadline);
}

absl::Status GlooCollectives::reduce_one_way(float* data, int64_t count,
                                             Clock::time_point deadline) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  incoming_.resize(std::max(incoming_.size(), static_cast<size_t>((size_ - 1) * count)));
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, incoming(peer, count), bytes});
    sends.push_back({peer, data, bytes});
  }
  if (absl::Status status = exchange(receives, sends, deadline); !status.ok()) return status;
  sum_in_order(data, count);
  return absl::OkStatus();
}

absl::Status GlooCollectives::reduce_by_parts(float* data, int64_t count,
                                              Clock::time_point deadline) {
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
  if (absl::Status status = exchange(receives, sends, deadline); !status.ok()) return status;
  sum_in_order(data + begin(rank_), own_count);
  receives.clear();
  sends.clear();
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, data + begin(peer), bytes(peer)});
    sends.push_back({peer, data + begin(rank_), bytes(rank_)});
  }
  return exchange(receives, sends, deadline);
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

absl::Status GlooCollectives::all_gather(const float* data, int64_t count, float* out,
                                         absl::Duration timeout) {
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
  return exchange(receives, sends, deadline_of(timeout));
}

absl::Status GlooCollectives::broadcast(void* data, int64_t bytes, int root,
                                        absl::Duration timeout) {
  LCKV_CHECK(root >= 0 && root < size_);
  const Clock::time_point deadline = deadline_of(timeout);
  for (int64_t at = 0; at < bytes; at += kBroadcastBytes) {
    char* const from = static_cast<char*>(data) + at;
    const int64_t some = std::min(kBroadcastBytes, bytes - at);
    std::vector<Transfer> receives;
    std::vector<Transfer> sends;
    if (rank_ != root) {
      receives.push_back({root, from, some});
    } else {
      for (int peer = 0; peer < size_; ++peer) {
        if (peer != root) sends.push_back({peer, from, some});
      }
    }
    if (absl::Status status = exchange(receives, sends, deadline); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status GlooCollectives::barrier(absl::Duration timeout) {
  uint8_t here = 1;
  std::vector<uint8_t> there(size_);
  std::vector<Transfer> receives;
  std::vector<Transfer> sends;
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    receives.push_back({peer, &there[peer], 1});
    sends.push_back({peer, &here, 1});
  }
  return exchange(receives, sends, deadline_of(timeout));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> connect_gloo(const GlooOptions& options) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " of ", options.size, " ranks"));
  }
  std::signal(SIGPIPE, SIG_IGN);
  auto ranks = std::make_unique<GlooCollectives>(options.rank, options.size);
  if (absl::Status status = ranks->connect(options); !status.ok()) return status;
  return ranks;
}

}  // namespace lckv
