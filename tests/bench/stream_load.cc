#include "tests/bench/stream_load.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/check.h"
#include "lckv/v1/inference.pb.h"
#include "tests/bench/stream_number.h"

namespace lckv::bench {
namespace {

// A message of gRPC: whether it is compressed, its length in four bytes, itself.
constexpr size_t kPrefixBytes = 5;

std::string framed(const google::protobuf::MessageLite& message) {
  const std::string body = message.SerializeAsString();
  const uint32_t length = htonl(static_cast<uint32_t>(body.size()));
  std::string frame(kPrefixBytes, '\0');
  std::memcpy(&frame[1], &length, sizeof length);
  return frame + body;
}

int connect_to(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  LCKV_CHECK(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  const int on = 1;
  LCKV_CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  return fd;
}

nghttp2_nv header(absl::string_view name, absl::string_view value) {
  const auto bytes = [](absl::string_view text) {
    return reinterpret_cast<uint8_t*>(const_cast<char*>(text.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

// One call after the other.
struct Stream {
  size_t number = 0;
  std::string request;
  size_t num_sent = 0;   // bytes of the request
  std::string received;  // of a message that is not whole yet
  std::string status;
  std::string message;
};

class Connection {
 public:
  Connection(const StreamLoadOptions& options, const Emissions& emissions, Delivered& delivered)
      : emissions_(emissions),
        delivered_(delivered),
        authority_(absl::StrCat("127.0.0.1:", options.port)),
        fd_(connect_to(options.port)) {
    nghttp2_session_callbacks* callbacks = nullptr;
    LCKV_CHECK(nghttp2_session_callbacks_new(&callbacks) == 0);
    nghttp2_session_callbacks_set_send_callback(callbacks, on_send);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    LCKV_CHECK(nghttp2_session_client_new(&session_, callbacks, this) == 0);
    nghttp2_session_callbacks_del(callbacks);
    constexpr int32_t kWindowBytes = 1 << 20;
    const nghttp2_settings_entry window = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kWindowBytes};
    LCKV_CHECK(nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, &window, 1) == 0);
    LCKV_CHECK(nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0,
                                                     8 * kWindowBytes) == 0);
  }
  ~Connection() {
    nghttp2_session_del(session_);
    close(fd_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int fd() const { return fd_; }

  void begin(Stream& stream) {
    stream.num_sent = 0;
    stream.received.clear();
    const std::array headers = {
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", "/lckv.v1.Inference/Generate"),
        header(":authority", authority_),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    };
    const nghttp2_data_provider body = {.source = {.ptr = &stream}, .read_callback = on_body};
    LCKV_CHECK(nghttp2_submit_request(session_, nullptr, headers.data(), headers.size(), &body,
                                      &stream) > 0);
  }
  void send() {
    if (nghttp2_session_want_write(session_) != 0) nghttp2_session_send(session_);
  }
  // What has come; false: the connection is lost.
  bool receive() {
    std::array<uint8_t, 64 << 10> bytes;
    const ssize_t count = recv(fd_, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (count <= 0 || nghttp2_session_mem_recv(session_, bytes.data(), count) < 0) {
      fail("the connection was lost");
      return false;
    }
    send();
    return true;
  }

 private:
  static ssize_t on_send(nghttp2_session* /*session*/, const uint8_t* data, size_t size,
                         int /*flags*/, void* self) {
    // What is sent is little: this never waits for long.
    return ::send(static_cast<Connection*>(self)->fd_, data, size, MSG_NOSIGNAL);
  }
  static ssize_t on_body(nghttp2_session* /*session*/, int32_t /*id*/, uint8_t* out, size_t size,
                         uint32_t* flags, nghttp2_data_source* source, void* /*self*/) {
    Stream& stream = *static_cast<Stream*>(source->ptr);
    const size_t count = std::min(size, stream.request.size() - stream.num_sent);
    std::memcpy(out, stream.request.data() + stream.num_sent, count);
    stream.num_sent += count;
    if (stream.num_sent == stream.request.size()) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(count);
  }
  static int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                       size_t name_size, const uint8_t* value, size_t value_size, uint8_t /*flags*/,
                       void* /*self*/) {
    auto* const stream =
        static_cast<Stream*>(nghttp2_session_get_stream_user_data(session, frame->hd.stream_id));
    if (stream == nullptr) return 0;
    const absl::string_view key(reinterpret_cast<const char*>(name), name_size);
    const std::string text(reinterpret_cast<const char*>(value), value_size);
    if (key == "grpc-status") stream->status = text;
    if (key == "grpc-message") stream->message = text;
    return 0;
  }
  static int on_data(nghttp2_session* session, uint8_t /*flags*/, int32_t id, const uint8_t* data,
                     size_t size, void* self) {
    auto* const stream = static_cast<Stream*>(nghttp2_session_get_stream_user_data(session, id));
    if (stream != nullptr) {
      static_cast<Connection*>(self)->take(*stream, reinterpret_cast<const char*>(data), size);
    }
    return 0;
  }
  static int on_close(nghttp2_session* session, int32_t id, uint32_t /*error*/, void* self) {
    auto* const stream = static_cast<Stream*>(nghttp2_session_get_stream_user_data(session, id));
    Connection& connection = *static_cast<Connection*>(self);
    if (stream->status == "0") {
      ++connection.delivered_.streams;
    } else {
      connection.fail(absl::StrCat("status ", stream->status, ": ", stream->message));
    }
    connection.begin(*stream);
    return 0;
  }

  void take(Stream& stream, const char* data, size_t size) {
    stream.received.append(data, size);
    absl::string_view rest = stream.received;
    while (rest.size() >= kPrefixBytes) {
      uint32_t length = 0;
      std::memcpy(&length, rest.data() + 1, sizeof length);
      length = ntohl(length);
      if (rest.size() < kPrefixBytes + length) break;
      LCKV_CHECK(event_.ParseFromArray(rest.data() + kPrefixBytes, static_cast<int>(length)));
      if (event_.has_tokens()) count(stream, event_.tokens());
      rest.remove_prefix(kPrefixBytes + length);
    }
    stream.received.erase(0, stream.received.size() - rest.size());
  }
  void count(const Stream& stream, const v1::Tokens& tokens) {
    ++delivered_.events;
    for (int i = 0; i < tokens.ids_size(); ++i) {
      ++delivered_.tokens;
      delivered_.latencies.push_back(emissions_.since(stream.number, tokens.position() + i));
    }
  }
  void fail(std::string why) {
    if (++delivered_.failures == 1) delivered_.first_failure = std::move(why);
  }

  const Emissions& emissions_;
  Delivered& delivered_;
  const std::string authority_;
  const int fd_;
  nghttp2_session* session_ = nullptr;
  v1::GenerateEvent event_;
};

}  // namespace

class StreamLoad::Reader {
 public:
  Reader(const StreamLoadOptions& options, const Emissions& emissions)
      : epoll_(epoll_create1(EPOLL_CLOEXEC)),
        wake_(eventfd(0, EFD_CLOEXEC)),
        streams_(options.num_streams) {
    for (int i = 0; i < options.num_connections; ++i) {
      connections_.push_back(std::make_unique<Connection>(options, emissions, delivered_));
    }
    for (size_t i = 0; i < streams_.size(); ++i) {
      v1::GenerateRequest request;
      for (const uint32_t id : prompt_of(i)) request.mutable_token_ids()->add_ids(id);
      request.mutable_sampling()->set_temperature(0);
      request.mutable_stopping()->set_max_new_tokens(options.num_tokens);
      streams_[i].number = i;
      streams_[i].request = framed(request);
      connections_[i % connections_.size()]->begin(streams_[i]);
    }
    for (const auto& connection : connections_) {
      connection->send();
      watch(connection->fd(), connection.get());
    }
    watch(wake_, nullptr);
    thread_ = std::thread([this] { read(); });
  }
  ~Reader() {
    const uint64_t one = 1;
    LCKV_CHECK(write(wake_, &one, sizeof one) == sizeof one);
    thread_.join();
    close(wake_);
    close(epoll_);
  }

  Delivered take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(delivered_, {});
  }

 private:
  // Until woken.
  void read() {
    std::array<epoll_event, 16> events;
    while (true) {
      const int count = epoll_wait(epoll_, events.data(), events.size(), -1);
      LCKV_CHECK(count > 0 || errno == EINTR);
      const std::lock_guard lock(mutex_);
      for (int i = 0; i < count; ++i) {
        auto* const connection = static_cast<Connection*>(events[i].data.ptr);
        if (connection == nullptr) return;
        if (!connection->receive()) epoll_ctl(epoll_, EPOLL_CTL_DEL, connection->fd(), nullptr);
      }
    }
  }
  void watch(int fd, Connection* connection) {
    epoll_event event = {.events = EPOLLIN, .data = {.ptr = connection}};
    LCKV_CHECK(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0);
  }

  const int epoll_;
  const int wake_;
  std::vector<Stream> streams_;
  std::vector<std::unique_ptr<Connection>> connections_;  // the thread's, once it runs
  std::mutex mutex_;                                      // guards the next
  Delivered delivered_;
  std::thread thread_;
};

StreamLoad::StreamLoad(const StreamLoadOptions& options, const Emissions& emissions)
    : reader_(std::make_unique<Reader>(options, emissions)) {}

StreamLoad::~StreamLoad() = default;

Delivered StreamLoad::take() { return reader_->take(); }

}  // namespace lckv::bench
