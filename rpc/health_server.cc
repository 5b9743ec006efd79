#include "rpc/health_server.h"

#include <map>
#include <mutex>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "rpc/server_options.h"

namespace lckv {

using ::grpc::health::v1::Health;
using ::grpc::health::v1::HealthCheckRequest;
using ::grpc::health::v1::HealthCheckResponse;

namespace {

constexpr char kReadiness[] = "readiness";
constexpr char kLiveness[] = "liveness";
constexpr size_t kMaxWatches = 1024;

std::string canonical(absl::string_view service) {
  return std::string(service == kReadiness ? absl::string_view() : service);
}

}  // namespace

// One lock guards states and the list of watches; it is never held while gRPC is called. A watch
// sends the newest state only: states that come and go while a write is under way are skipped, as
// the protocol allows.
class HealthServer::Service final : public Health::CallbackService {
 public:
  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* call,
                                  const HealthCheckRequest* request,
                                  HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
    const auto status = status_of(canonical(request->service()));
    response->set_status(status);
    reactor->Finish(status == HealthCheckResponse::SERVICE_UNKNOWN
                        ? grpc::Status(grpc::StatusCode::NOT_FOUND, "no such service")
                        : grpc::Status::OK);
    return reactor;
  }

  grpc::ServerWriteReactor<HealthCheckResponse>* Watch(grpc::CallbackServerContext* /*call*/,
                                                       const HealthCheckRequest* request) override {
    auto* watch = new WatchReactor(*this, canonical(request->service()));
    bool admitted = false;
    {
      std::lock_guard lock(mutex_);
      admitted = !stopping_ && watches_.size() < kMaxWatches;
      if (admitted) watches_.insert(watch);
    }
    if (admitted) {
      watch->advance();
    } else {
      watch->refuse();
    }
    return watch;
  }

  void set(const std::vector<std::string>& services, bool serving) {
    std::vector<WatchReactor*> affected;
    {
      std::lock_guard lock(mutex_);
      for (const std::string& service : services) serving_[service] = serving;
      affected = hold_watches();
    }
    release(affected);
  }

  std::vector<std::string> all_but_liveness() {
    std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (const auto& [name, serving] : serving_) {
      if (name != kLiveness) names.push_back(name);
    }
    return names;
  }

  void stop() {
    std::vector<WatchReactor*> affected;
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      affected = hold_watches();
    }
    release(affected);
  }

 private:
  class WatchReactor final : public grpc::ServerWriteReactor<HealthCheckResponse> {
   public:
    WatchReactor(Service& service, std::string name) : service_(service), name_(std::move(name)) {}

    void OnWriteDone(bool ok) override {
      {
        std::lock_guard lock(service_.mutex_);
        writing_ = false;
        cancelled_ = cancelled_ || !ok;
      }
      advance();
    }
    void OnCancel() override {
      {
        std::lock_guard lock(service_.mutex_);
        cancelled_ = true;
      }
      advance();
    }
    void OnDone() override {
      bool last = false;
      {
        std::lock_guard lock(service_.mutex_);
        service_.watches_.erase(this);
        done_ = true;
        last = holds_ == 0;
      }
      if (last) delete this;
    }

    void refuse() {
      Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many watches"));
    }

    // Starts the next write, or the end, where one is due.
    void advance() {
      bool finish = false;
      {
        std::lock_guard lock(service_.mutex_);
        if (finished_ || writing_) return;
        if (cancelled_ || service_.stopping_) {
          finished_ = finish = true;
        } else {
          const auto status = service_.status_locked(name_);
          if (sent_ && response_.status() == status) return;
          response_.set_status(status);
          sent_ = writing_ = true;
        }
      }
      if (finish) {
        Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server shuts down"));
      } else {
        StartWrite(&response_);
      }
    }

    // Guarded by the service's lock, like everything below. A held watch outlives its call.
    int holds_ = 0;
    bool done_ = false;

   private:
    Service& service_;
    const std::string name_;
    HealthCheckResponse response_;
    bool sent_ = false;
    bool writing_ = false;
    bool cancelled_ = false;
    bool finished_ = false;
  };

  HealthCheckResponse::ServingStatus status_of(const std::string& service) {
    std::lock_guard lock(mutex_);
    return status_locked(service);
  }

  HealthCheckResponse::ServingStatus status_locked(const std::string& service) {
    const auto it = serving_.find(service);
    if (it == serving_.end()) return HealthCheckResponse::SERVICE_UNKNOWN;
    return it->second ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
  }

  std::vector<WatchReactor*> hold_watches() {
    std::vector<WatchReactor*> held(watches_.begin(), watches_.end());
    for (WatchReactor* watch : held) ++watch->holds_;
    return held;
  }

  void release(const std::vector<WatchReactor*>& held) {
    for (WatchReactor* watch : held) {
      watch->advance();
      bool last = false;
      {
        std::lock_guard lock(mutex_);
        last = --watch->holds_ == 0 && watch->done_;
      }
      if (last) delete watch;
    }
  }

  std::mutex mutex_;  // guards what follows, and the watches' own state
  std::map<std::string, bool> serving_;
  std::set<WatchReactor*> watches_;
  bool stopping_ = false;
};

struct HealthServer::State {
  Service service;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

HealthServer::HealthServer() : state_(std::make_unique<State>()) {}
HealthServer::~HealthServer() { stop(); }

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::start(const HealthOptions& options) {
  std::unique_ptr<HealthServer> health(new HealthServer);
  State& state = *health->state_;
  std::vector<std::string> names = options.services;
  names.push_back("");
  state.service.set(names, false);
  state.service.set({kLiveness}, true);

  grpc::ServerBuilder builder;
  configure_public_server(builder);
  if (!options.reflection) leave_reflection_out(builder);
  const std::string address = host_port(options.host, options.port);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &state.port);
  builder.RegisterService(&state.service);
  state.server = builder.BuildAndStart();
  if (state.server == nullptr || state.port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot serve health on ", address));
  }
  return health;
}

void HealthServer::set_serving(absl::string_view service, bool serving) {
  state_->service.set({canonical(service)}, serving);
}

void HealthServer::set_ready(bool ready) {
  state_->service.set(state_->service.all_but_liveness(), ready);
}

uint16_t HealthServer::port() const { return static_cast<uint16_t>(state_->port); }

void HealthServer::stop() {
  if (state_->server == nullptr) return;
  state_->service.stop();
  state_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  state_->server->Wait();
  state_->server.reset();
}

}  // namespace lckv
