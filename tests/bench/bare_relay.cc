#include "tests/bench/bare_relay.h"

#include <atomic>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "kernels/check.h"

namespace lckv::bench {
namespace {

class Relayed;

// The upstream half of a call.
class Upstream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit Upstream(Relayed& call) : call_(call) {}
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  Relayed& call_;
};

// A call with one request and any number of answers, each passed on before the next is read.
class Relayed final : public grpc::ServerGenericBidiReactor {
 public:
  Relayed(grpc::GenericStub& stub, std::string method)
      : stub_(stub), method_(std::move(method)), upstream_(*this) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    LCKV_CHECK(ok);
    num_halves_ = 2;
    stub_.PrepareBidiStreamingCall(&context_, method_, {}, &upstream_);
    upstream_.StartWriteLast(&request_, {});
    upstream_.StartRead(&answer_);
    upstream_.AddHold();  // reads are begun from the other half
    upstream_.StartCall();
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      upstream_.StartRead(&answer_);
    } else {
      context_.TryCancel();
      upstream_.RemoveHold();
    }
  }
  void OnCancel() override { context_.TryCancel(); }
  void OnDone() override { end_half(); }

  void answered() { StartWrite(&answer_); }
  void upstream_done(const grpc::Status& status) {
    Finish(status);
    end_half();
  }

 private:
  void end_half() {
    if (--num_halves_ == 0) delete this;
  }

  grpc::GenericStub& stub_;
  const std::string method_;
  grpc::ClientContext context_;
  Upstream upstream_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer answer_;
  std::atomic<int> num_halves_ = 1;
};

void Upstream::OnReadDone(bool ok) {
  if (ok) {
    call_.answered();
  } else {
    RemoveHold();
  }
}

void Upstream::OnDone(const grpc::Status& status) { call_.upstream_done(status); }

class RelayService final : public grpc::CallbackGenericService {
 public:
  explicit RelayService(const std::string& upstream)
      : stub_(grpc::CreateChannel(upstream, grpc::InsecureChannelCredentials())) {}

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    return new Relayed(stub_, context->method());
  }

 private:
  grpc::GenericStub stub_;
};

}  // namespace

void run_bare_relay(uint16_t port, const std::string& upstream) {
  RelayService service(upstream);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials());
  builder.RegisterCallbackGenericService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  LCKV_CHECK(server != nullptr);
  server->Wait();
}

}  // namespace lckv::bench
