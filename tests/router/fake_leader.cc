#include "tests/router/fake_leader.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>

#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "rpc/server_options.h"

namespace lckv {

using internal::v1::RouterFrame;
using internal::v1::WorkerFrame;

void FakeSession::write(WorkerFrame frame) {
  std::lock_guard lock(mutex_);
  if (stream_ == nullptr) return;
  frame.mutable_load()->set_credit(credit_);
  frame.mutable_load()->set_num_taken(num_taken_);
  frame.mutable_load()->set_step(++step_);
  frame.mutable_load()->set_num_blocks(100);
  frame.mutable_load()->set_num_free_blocks(100);
  stream_->Write(frame);
}

void FakeSession::start(uint64_t handle) {
  WorkerFrame frame;
  frame.mutable_step()->add_started()->set_handle(handle);
  write(std::move(frame));
}

void FakeSession::token(uint64_t handle, uint32_t token) {
  WorkerFrame frame;
  frame.mutable_step()->add_handle(handle);
  frame.mutable_step()->add_token(token);
  write(std::move(frame));
}

void FakeSession::finish(uint64_t handle, internal::v1::Finished::Reason reason) {
  WorkerFrame frame;
  auto* finished = frame.mutable_step()->add_finished();
  finished->set_handle(handle);
  finished->set_reason(reason);
  write(std::move(frame));
}

bool FakeSession::cancelled(uint64_t handle) {
  std::lock_guard lock(mutex_);
  return std::find(cancelled_.begin(), cancelled_.end(), handle) != cancelled_.end();
}

bool FakeSession::paused(uint64_t handle) {
  std::lock_guard lock(mutex_);
  return std::find(paused_.begin(), paused_.end(), handle) != paused_.end();
}

void FakeSession::note(const RouterFrame& frame) {
  std::lock_guard lock(mutex_);
  if (frame.has_submit()) ++num_taken_;
  if (frame.has_cancel()) cancelled_.push_back(frame.cancel().handle());
  if (frame.has_pause()) paused_.push_back(frame.pause().handle());
  if (frame.has_continue_()) std::erase(paused_, frame.continue_().handle());
}

FakeLeader::FakeLeader(internal::v1::Hello hello, SubmitScript script, int port)
    : hello_(std::move(hello)), script_(std::move(script)) {
  grpc::ServerBuilder builder;
  configure_internal_server(builder);
  builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                           &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
}

FakeLeader::~FakeLeader() { kill(); }

void FakeLeader::kill() {
  killed_ = true;
  if (server_) server_->Shutdown(std::chrono::system_clock::now());
  std::vector<std::thread> threads;
  {
    std::lock_guard lock(mutex_);
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
  server_.reset();
}

std::vector<internal::v1::Submit> FakeLeader::submits() {
  std::lock_guard lock(mutex_);
  return submits_;
}

grpc::Status FakeLeader::Session(grpc::ServerContext* context, FakeSession::Stream* stream) {
  const auto session = std::make_shared<FakeSession>(stream);
  session->set_credit(initial_credit_);
  ++num_sessions_;
  while (!hello_allowed_ && !killed_ && !context->IsCancelled()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  WorkerFrame hello;
  *hello.mutable_hello() = hello_;
  session->write(std::move(hello));
  RouterFrame frame;
  while (stream->Read(&frame)) {
    session->note(frame);
    if (frame.has_beat()) session->write(WorkerFrame());
    if (!frame.has_submit()) continue;
    ++num_submits_;
    std::lock_guard lock(mutex_);
    submits_.push_back(frame.submit());
    if (killed_) break;
    threads_.emplace_back([this, session, submit = frame.submit()] { script_(session, submit); });
  }
  std::lock_guard lock(session->mutex_);
  session->stream_ = nullptr;
  return grpc::Status::OK;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

internal::v1::Hello demo_hello(const std::string& replica_id) {
  internal::v1::Hello hello;
  hello.set_replica_id(replica_id);
  hello.set_model("demo");
  hello.set_fingerprint("fingerprint-1");
  hello.set_vocabulary_size(4096);
  hello.set_max_context_tokens(512);
  hello.set_max_logprobs(20);
  hello.add_eos_token_ids(2);
  hello.set_bos_token_id(1);
  hello.mutable_tokenizer()->set_sentencepiece_model(
      read_file("deploy/models/demo/tokenizer.model"));
  hello.mutable_tokenizer()->set_config_json(read_file("deploy/models/demo/tokenizer_config.json"));
  return hello;
}

void count_up(const std::shared_ptr<FakeSession>& session, const internal::v1::Submit& submit) {
  session->start(submit.handle());
  const uint32_t begin = static_cast<uint32_t>(submit.resumed_size());
  for (uint32_t i = begin; i < submit.max_new_tokens(); ++i) {
    session->token(submit.handle(), 300 + i);
  }
  session->finish(submit.handle(), internal::v1::Finished::REASON_MAX_NEW_TOKENS);
}

}  // namespace lckv
