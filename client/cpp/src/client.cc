#include "wasmkiln/client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <utility>

#include "attestation.h"
#include "cancellation.h"
#include "compile_stream.h"
#include "crypto.h"
#include "header_checks.h"
#include "host_file.h"
#include "local.h"
#include "status.h"
#include "wasmkiln/v1/module_service.grpc.pb.h"

namespace wasmkiln {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kInlineBytes = 65536;
constexpr int kMaxMessageBytes = 64 << 20;
// How long the client asks for bytes after a file of the host store did not count.
constexpr std::chrono::seconds kWithoutFiles{60};

// More than any caller waits, and far from where clocks overflow.
constexpr std::chrono::hours kLongest{24 * 365};

// Return a token without the line's end. gRPC aborts the process for metadata that HTTP/2 cannot
// carry.
std::string usable(const std::string& text) {
  std::string token = text.substr(0, text.find_last_not_of(" \r\n") + 1);
  for (unsigned char c : token) {
    if (c <= 0x20 || c >= 0x7f) {
      throw std::invalid_argument(
          "cannot use the token: expected printable ASCII without spaces or line breaks");
    }
  }
  return token;
}

std::string token_in(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || text.empty()) throw std::invalid_argument("cannot read a token in " + path);
  return usable(text);
}

std::string new_request_id() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::uint64_t number = random();
  return to_hex({reinterpret_cast<const char*>(&number), sizeof number});
}

// Channels with equal arguments share a connection; this one belongs to one client.
std::shared_ptr<grpc::Channel> channel_to(const std::string& address,
                                          const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(-1);  // the daemon says what is too large
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // After a failed connection, gRPC fails each call until it tries again.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  if (!options.service_config.empty()) {
    arguments.SetServiceConfigJSON(options.service_config);
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (options.tls) {
    credentials = grpc::SslCredentials({options.tls->ca, options.tls->key, options.tls->cert});
  }
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

}  // namespace

std::string Artifact::origin() const {
  std::string name = v1::Origin_Name(header_.origin());
  const std::string prefix = "ORIGIN_";
  if (name.rfind(prefix, 0) == 0) name.erase(0, prefix.size());
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return name;
}

std::string Artifact::path() const {
  return file_ ? "/proc/self/fd/" + std::to_string(file_->descriptor) : "";
}

std::string Artifact::bytes() const {
  if (!file_) return bytes_;
  try {
    std::string content = file_->read();
    if (sha256_hex(content) == header_.artifact_sha256()) return content;
  } catch (const Refused& refused) {
    throw_mismatch(refused.what());
  }
  throw_mismatch("the file's bytes are not those of its header");
}

void Artifact::check_unchanged() const {
  if (file_ && file_->changed()) throw_mismatch("the file changed while it was loaded");
}

struct Client::State {
  std::string address;
  ClientOptions options;
  TrustedKeys trusted;
  std::unique_ptr<v1::ModuleService::Stub> stub;
  bool local;
  std::atomic<Clock::rep> files_from{0};

  // One call of gRPC, with what its messages need.
  struct Call {
    grpc::ClientContext context;
    CallFacts facts;
  };

  std::chrono::milliseconds timeout_of(const CallOptions& call) const {
    auto timeout = call.timeout.value_or(options.timeout);
    if (timeout.count() <= 0) throw std::invalid_argument("expected a timeout above zero");
    return std::min<std::chrono::milliseconds>(timeout, kLongest);
  }

  // `module` is the digest of the module that the call is about, by which calls can be routed.
  void prepare(Call& call, const CallOptions& how, Clock::time_point end,
               const std::string& module = {}) const {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    call.facts = {address, timeout_of(how), new_request_id()};
    call.context.set_deadline(std::chrono::system_clock::now() + left);
    call.context.AddMetadata("x-request-id", call.facts.request_id);
    std::string token = options.token_file.empty() ? options.token : token_in(options.token_file);
    if (!token.empty()) call.context.AddMetadata("authorization", "Bearer " + token);
    if (!module.empty()) call.context.AddMetadata("wasmkiln-module", module);
    if (how.priority == Priority::kBackground) {
      call.context.AddMetadata("wasmkiln-priority", "background");
    }
  }

  template <typename Request, typename Response>
  Response unary(grpc::Status (v1::ModuleService::Stub::*method)(grpc::ClientContext*,
                                                                 const Request&, Response*),
                 const Request& request, const CallOptions& how,
                 const std::string& module = {}) const {
    Call call;
    prepare(call, how, Clock::now() + timeout_of(how), module);
    Cancellable cancellable(how.cancellation, &call.context);
    Response response;
    grpc::Status status = (stub.get()->*method)(&call.context, request, &response);
    if (!status.ok()) throw_status(status, call.facts);
    return response;
  }

  Artifact ask(const v1::CompileRequest& request, const std::string& sha256, v1::Kind kind,
               const CompileOptions& how, Clock::time_point end) const {
    Call call;
    prepare(call, how, end, sha256);
    Cancellable cancellable(how.cancellation, &call.context);
    try {
      return receive(call, request, sha256, kind);
    } catch (const WasmkilnError& error) {
      if (!error.request_id().empty()) throw;
      throw_of_request(error, call.facts.request_id);
    }
  }

  Artifact receive(Call& call, const v1::CompileRequest& request, const std::string& sha256,
                   v1::Kind kind) const {
    CompileStream stream(request, sha256, kind, options.max_artifact_bytes, trusted);
    auto reader = stub->Compile(&call.context, request);
    v1::CompileResponse message;
    try {
      while (reader->Read(&message)) stream.add(std::move(message));
    } catch (...) {
      call.context.TryCancel();
      reader->Finish();
      throw;
    }
    grpc::Status status = reader->Finish();
    if (!status.ok()) throw_status(status, call.facts);
    return stream.finish();
  }

  bool takes_files() const {
    return local && options.host_store &&
           Clock::now().time_since_epoch().count() >= files_from.load();
  }

  // Ask, and again for the bytes where the daemon's file does not count.
  Artifact obtain(v1::CompileRequest& request, const std::string& sha256, v1::Kind kind,
                  const CompileOptions& how, Clock::time_point end) {
    request.set_accept_host_file(takes_files());
    try {
      return ask(request, sha256, kind, how, end);
    } catch (const Refused&) {
      files_from = (Clock::now() + kWithoutFiles).time_since_epoch().count();
    }
    request.set_accept_host_file(false);
    return ask(request, sha256, kind, how, end);
  }

  static v1::CompileRequest request_for(const CompileOptions& options) {
    v1::CompileRequest request;
    request.set_engine(options.engine);
    request.set_target(options.target);
    request.set_cpu(options.cpu);
    request.mutable_settings()->insert(options.settings.begin(), options.settings.end());
    request.set_inline_limit_bytes(kInlineBytes);
    return request;
  }
};

Client::Client(const std::string& address, ClientOptions options)
    : state_(std::make_unique<State>()) {
  check_address(address);
  state_->address = address;
  state_->local = is_local(address);
  options.token = usable(options.token);
  if (!options.token.empty() && !options.token_file.empty()) {
    throw std::invalid_argument("give token or token_file, not both");
  }
  bool has_token = !options.token.empty() || !options.token_file.empty();
  if (has_token && !options.tls && !state_->local) {
    throw std::invalid_argument(
        "cannot send a token to " + address +
        " in plaintext: anybody on the way could read it; set tls");
  }
  for (const std::string& text : options.trusted_keys) {
    std::string key = public_key(text);
    state_->trusted[sha256_hex(key)] = key;
  }
  state_->stub = v1::ModuleService::NewStub(channel_to(address, options));
  state_->options = std::move(options);
}

Client::~Client() = default;
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;

Artifact Client::compile(std::string_view module, const CompileOptions& options) {
  auto end = Clock::now() + state_->timeout_of(options);
  std::string sha256 = sha256_hex(module);
  v1::CompileRequest request = State::request_for(options);
  request.set_sha256(sha256);
  try {
    return state_->obtain(request, sha256, kind_of(module), options, end);
  } catch (const ModuleNotLoaded&) {
    request.set_module(module.data(), module.size());
  }
  return state_->obtain(request, sha256, kind_of(module), options, end);
}

Artifact Client::compile_digest(const std::string& sha256, const CompileOptions& options) {
  if (!is_digest(sha256)) {
    throw std::invalid_argument("a digest is 64 lowercase hexadecimal digits");
  }
  auto end = Clock::now() + state_->timeout_of(options);
  v1::CompileRequest request = State::request_for(options);
  request.set_sha256(sha256);
  return state_->obtain(request, sha256, v1::KIND_UNSPECIFIED, options, end);
}

v1::LoadResponse Client::load(std::string_view module, const std::string& engine,
                              const CallOptions& options) {
  v1::LoadRequest request;
  request.set_module(module.data(), module.size());
  request.set_expected_sha256(sha256_hex(module));
  request.set_engine(engine);
  auto response = state_->unary(&v1::ModuleService::Stub::Load, request, options,
                                request.expected_sha256());
  if (response.sha256() != request.expected_sha256() || response.size_bytes() != module.size()) {
    throw_unexpected("loaded module " + request.expected_sha256() +
                     ", and the daemon's answer is about " + quoted(response.sha256()));
  }
  return response;
}

v1::StatsResponse Client::stats(const CallOptions& options) {
  return state_->unary(&v1::ModuleService::Stub::Stats, v1::StatsRequest(), options);
}

v1::GetCapabilitiesResponse Client::capabilities(const CallOptions& options) {
  return state_->unary(&v1::ModuleService::Stub::GetCapabilities, v1::GetCapabilitiesRequest(),
                       options);
}

}  // namespace wasmkiln
