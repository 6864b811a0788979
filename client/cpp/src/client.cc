#include "wasmkiln/client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <regex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "internal.h"
#include "wasmkiln/v1/module_service.grpc.pb.h"

namespace wasmkiln {
namespace {

using Clock = std::chrono::system_clock;

constexpr int kInlineBytes = 65536;
constexpr int kMaxMessageBytes = 64 << 20;
// Larger modules go in pieces, of which a cut costs one.
constexpr std::size_t kUploadAboveBytes = 8 << 20;
constexpr std::size_t kPieceBytes = 256 << 10;
// How long the client leaves an upload to the call that took it over.
constexpr std::chrono::seconds kOtherUpload{1};
constexpr std::chrono::milliseconds kFirstPause{100}, kLongestPause{2000};
// More than any caller waits, and far from where clocks overflow.
constexpr std::chrono::milliseconds kLongest = std::chrono::hours(24 * 365);

thread_local std::mt19937_64 random_bits{std::random_device{}()};

bool is_local(const std::string& address) {
  static const std::regex local(
      "unix(-abstract)?:.*|(dns:(///)?|ipv4:|ipv6:)?"
      "(127(\\.[0-9]{1,3}){3}|\\[::1\\]|([^,/:]+\\.)?localhost)(:[0-9]+)?");
  return std::regex_match(address, local);
}

// Throw std::invalid_argument for an address that gRPC would take for another: one without a port
// for port 443, and one of an unknown scheme for a name.
void check_address(const std::string& address) {
  static const std::regex good(
      "(unix|unix-abstract|xds):.+|(dns:(//[^/]*/)?|ipv4:|ipv6:)?"
      "([^:/\\[]+|\\[[^\\]]+\\]):[1-9][0-9]{0,4}(,([^:/\\[]+|\\[[^\\]]+\\]):[1-9][0-9]{0,4})*");
  if (!std::regex_match(address, good)) {
    throw std::invalid_argument("an address is host:port or unix:/path, not " + address);
  }
}

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

std::string token_of(const ClientOptions& options) {
  if (options.token_file.empty()) return usable(options.token);
  std::string token = usable(read_file(options.token_file));
  if (token.empty()) throw std::invalid_argument("there is no token in " + options.token_file);
  return token;
}

std::shared_ptr<grpc::Channel> channel_to(const std::string& address,
                                          const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(-1);  // the daemon says what is too large
  // Channels with equal arguments share a connection; this one belongs to one client.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // What goes to this machine, a token too, is no business of a proxy that the environment names.
  if (is_local(address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // After a failed connection, gRPC fails each call until it tries again.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  if (!options.service_config.empty()) arguments.SetServiceConfigJSON(options.service_config);
  auto credentials = grpc::InsecureChannelCredentials();
  if (options.tls) {
    credentials = grpc::SslCredentials({options.tls->ca, options.tls->key, options.tls->cert});
  }
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

void require(bool is_true, const std::string& otherwise) {
  if (!is_true) refuse("ARTIFACT_MISMATCH", otherwise);
}

using Settings = std::map<std::string, std::string>;

// Return the number in `size` bytes, the lowest first. Throw std::out_of_range beyond the end.
std::uint64_t number(std::string_view bytes, std::uint64_t at, std::size_t size) {
  if (at + size < at || at + size > bytes.size()) throw std::out_of_range("damaged");
  std::uint64_t value = 0;
  while (size--) value = value << 8 | static_cast<unsigned char>(bytes[at + size]);
  return value;
}

// Return the section in which wasmtime says for which engine it compiled something, or a section
// as it is. Throw std::invalid_argument for anything else.
std::string section_of(std::string_view compiled) {
  constexpr std::string_view name(".wasmtime.engine\0", 17);
  auto begins = [&](const std::string& with) { return compiled.substr(0, with.size()) == with; };
  if (begins({'\0'}) && !begins({'\0', 'a', 's', 'm'})) return std::string(compiled);
  try {
    if (!begins("\x7f" "ELF\2")) throw std::out_of_range("another file");
    std::uint64_t row = number(compiled, 0x28, 8);
    const std::uint64_t size = number(compiled, 0x3a, 2);
    const std::uint64_t names = number(compiled, row + size * number(compiled, 0x3e, 2) + 0x18, 8);
    for (std::uint64_t left = number(compiled, 0x3c, 2); left > 0; --left, row += size) {
      std::uint64_t at = names + number(compiled, row, 4);
      if (compiled.substr(at, name.size()) != name) continue;
      std::uint64_t from = number(compiled, row + 0x18, 8), length = number(compiled, row + 0x20, 8);
      std::string_view section = compiled.substr(from, length);
      if (!section.empty() && section.size() == length) return std::string(section);
    }
  } catch (const std::out_of_range&) {
    // Whatever else it is.
  }
  throw std::invalid_argument(
      "cannot use compatibility: these bytes are nothing that wasmtime compiled");
}

// The setting that makes an artifact one of the engine's fast compiler.
const std::map<std::string, std::pair<std::string, std::string>> kFast = {
    {"wasmtime", {"strategy", "winch"}}, {"wasmer", {"compiler", "singlepass"}}};

bool includes(const Settings& all, const Settings& part) {
  return std::includes(all.begin(), all.end(), part.begin(), part.end());
}

// Throw unless a header is about what the call asked for. A signature binds an artifact to its
// header, and not to the call: an attacker may answer with another signed artifact.
void check_header(const v1::CompileRequest& asked, const std::string& sha256,
                  const v1::ArtifactHeader& got, std::uint64_t max_bytes) {
  const std::string& name = got.engine().name();
  const std::string id = name + "-" + got.engine().version();
  Settings wanted(asked.settings().begin(), asked.settings().end());
  Settings changed(got.changed_settings().begin(), got.changed_settings().end());
  auto fast = kFast.find(name);
  bool is_fast = fast != kFast.end() && changed.count(fast->second.first) &&
                 changed[fast->second.first] == fast->second.second;
  if (is_fast && asked.accept_fast()) changed.erase(fast->second.first);
  Settings stated(got.settings().begin(), got.settings().end());
  // Settings that artifacts of earlier daemons do not state, and what these artifacts have.
  stated.insert({{"strategy", "cranelift"},
                 {"compiler", "cranelift"},
                 {"collector", "drc"},
                 {"memory_init_cow", "true"},
                 {"memory_reservation_for_growth", "2147483648"},
                 {"debug_info", "false"},
                 {"concurrency_support", "true"},
                 {"wasm_branch_hinting", "false"},
                 {"wasm_compact_imports", "false"},
                 {"wasm_component_model_accessors", "false"},
                 {"wasm_component_model_async", "true"},
                 {"wasm_component_model_async_stackful", "false"},
                 {"wasm_component_model_canonical_names", "false"},
                 {"wasm_component_model_more_async_builtins", "false"}});
  auto is_none_or = [](const std::string& named, const std::string& other) {
    return named.empty() || named == other;
  };
  const std::pair<const char*, bool> facts[] = {
      {"module", got.module_sha256() == sha256},
      {"engine", asked.engine() == name || is_none_or(asked.engine(), id)},
      {"engine id", got.engine().id() == id},
      {"target", is_none_or(asked.target(), got.target())},
      {"cpu", is_none_or(asked.cpu(), got.cpu())},
      {"setting", includes(stated, wanted)},
      // A setting that the call did not name has to have the engine's default, unless the host's
      // engine was shown, which compares them itself.
      {"changed setting", !asked.compatibility().empty() || includes(wanted, changed)},
      {"compiler", got.is_fast() == is_fast},
      {"encoding", got.content_encoding().empty()},
      {"beginning", got.offset_bytes() == 0 ||
                        (got.offset_bytes() == asked.offset_bytes() &&
                         got.artifact_sha256() == asked.artifact_sha256())}};
  for (const auto& [what, is_so] : facts) {
    require(is_so, std::string("the artifact has another ") + what + " than asked for");
  }
  if (got.size_bytes() > max_bytes) {
    std::string size = std::to_string(got.size_bytes());
    refuse("ARTIFACT_TOO_LARGE",
           "the artifact has " + size + " bytes: raise max_artifact_bytes to take it",
           {{"size_bytes", size}, {"limit_bytes", std::to_string(max_bytes)}});
  }
}

}  // namespace

void Cancellation::cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  is_cancelled_ = true;
  cancelled_.notify_all();
  for (grpc::ClientContext* call : calls_) call->TryCancel();
}

// What the requests of one call share, and errors say of it.
struct Shared {
  // `sha256` is the digest of the module that the call is about, or empty.
  Shared(const CompileOptions& options, std::chrono::milliseconds otherwise, std::string sha256)
      : how(options), module(std::move(sha256)) {
    auto timeout = how.timeout.value_or(otherwise);
    end = Clock::now() + std::clamp(timeout, std::chrono::milliseconds(0), kLongest);
    char id[17];
    std::snprintf(id, sizeof id, "%016llx", static_cast<unsigned long long>(random_bits()));
    request_id = id;
  }

  // Note that so many bytes of the module or artifact are where they have to be.
  void arrived(std::uint64_t bytes) {
    if (bytes > most) tries = 0;
    most = std::max(most, bytes);
  }

  // Wait, or return at once if the call is cancelled: its next request then fails for that.
  void wait(Clock::duration time) const {
    auto until = std::min(Clock::now() + time, end);
    if (!how.cancellation) return std::this_thread::sleep_until(until);
    auto& cancellation = *how.cancellation;
    std::unique_lock<std::mutex> lock(cancellation.mutex_);
    cancellation.cancelled_.wait_until(lock, until, [&] { return cancellation.is_cancelled_; });
  }

  // Return whether the caller has cancelled the call.
  bool is_cancelled() const {
    if (!how.cancellation) return false;
    std::lock_guard<std::mutex> lock(how.cancellation->mutex_);
    return how.cancellation->is_cancelled_;
  }

  // Wait before another try, or throw the error if no other can follow.
  void pause(const WasmkilnError& error) {
    const ErrorDetails& details = error.details();
    auto found = details.metadata.find("detail");
    const std::string detail = found == details.metadata.end() ? "" : found->second;
    auto says = [&](const char* words) { return detail.find(words) != std::string::npos; };
    if (details.code == grpc::StatusCode::DEADLINE_EXCEEDED && failure) throw *failure;
    // gRPC has the codes CANCELLED, INTERNAL or UNKNOWN for a stream that the other side reset, or
    // ended without a status.
    bool is_cut = details.code == grpc::StatusCode::UNAVAILABLE || says("RST_STREAM") ||
                  says("Stream removed");
    // A daemon that ends cancels its calls, too.
    is_cut = is_cut || (details.code == grpc::StatusCode::CANCELLED && !is_cancelled());
    bool is_lasting = says("handshake failed") || says("Hostname Verification") ||
                      says("Failed parsing HTTP/2");
    // Its caller leaves the upload to the call that took it over.
    bool is_other = details.reason == "UPLOAD_INTERRUPTED";
    if (is_lasting || is_other || !(is_cut || details.retry_after)) throw;
    auto longest = std::min(kLongestPause, kFirstPause * (1 << std::min(tries++, 10)));
    std::chrono::duration<double> backoff(longest);
    backoff *= std::uniform_real_distribution<>(0.5, 1)(random_bits);
    auto pause = std::chrono::duration_cast<std::chrono::milliseconds>(backoff) +
                 std::min(details.retry_after.value_or(std::chrono::milliseconds(0)), kLongest);
    if (Clock::now() + pause > end) throw;
    failure = error;
    wait(pause);
  }

  const CompileOptions& how;
  std::string module;
  Clock::time_point end;
  std::string request_id;
  // Tries since more arrived than ever before, and how much that is.
  int tries = 0;
  std::uint64_t most = 0;
  // Why the last try failed.
  std::optional<WasmkilnError> failure;
};

// One request, which a Cancellation may end as long as it lives.
class Call {
 public:
  Call(const std::string& token, const Shared& shared) : cancellation_(shared.how.cancellation) {
    context.set_deadline(shared.end);
    // gRPC connects while a request waits for that. Otherwise it looks every five seconds only.
    context.set_wait_for_ready(shared.failure.has_value());
    context.AddMetadata("x-request-id", shared.request_id);
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    // A balancer that routes by it sends all calls about a module to the same daemon.
    if (!shared.module.empty()) context.AddMetadata("wasmkiln-module", shared.module);
    if (shared.how.is_background) context.AddMetadata("wasmkiln-priority", "background");
    if (!cancellation_) return;
    std::lock_guard<std::mutex> lock(cancellation_->mutex_);
    cancellation_->calls_.insert(&context);
    // gRPC remembers it for a call that has not begun.
    if (cancellation_->is_cancelled_) context.TryCancel();
  }

  ~Call() {
    if (!cancellation_) return;
    std::lock_guard<std::mutex> lock(cancellation_->mutex_);
    cancellation_->calls_.erase(&context);
  }

  grpc::ClientContext context;

 private:
  std::shared_ptr<Cancellation> cancellation_;
};

struct Client::State {
  std::string address;
  ClientOptions options;
  TrustedKeys trusted;
  std::unique_ptr<v1::ModuleService::Stub> stub;

  // Make a request, whose errors then say which call it belongs to.
  template <typename Run>
  auto make(const Shared& shared, Run run) const {
    Call call(token_of(options), shared);
    try {
      return run(&call.context);
    } catch (WasmkilnError& error) {
      error.set_request_id(shared.request_id);
      throw;
    }
  }

  // Try as long as the call's time lasts and another try may help: docs/reference/api.md.
  template <typename Run>
  auto persist(Shared& shared, Run run) const {
    shared.tries = 0;
    shared.most = 0;
    shared.failure.reset();
    while (true) {
      try {
        return run();
      } catch (const WasmkilnError& error) {
        shared.pause(error);
      }
    }
  }

  template <typename Request, typename Response>
  Response unary(grpc::Status (v1::ModuleService::Stub::*method)(grpc::ClientContext*,
                                                                 const Request&, Response*),
                 const Request& request, const Shared& shared) const {
    return make(shared, [&](grpc::ClientContext* context) {
      Response response;
      grpc::Status status = (stub.get()->*method)(context, request, &response);
      if (!status.ok()) throw_status(status, address);
      return response;
    });
  }

  // Have the daemon take a module: a large one in pieces, if the daemon knows that, and others in
  // one message. Return nothing where another call has taken an upload over, and may have ended it.
  std::optional<v1::LoadResponse> load(std::string_view module, Shared& shared) const {
    using Stub = v1::ModuleService::Stub;
    v1::QueryUploadRequest query;
    query.set_sha256(shared.module);
    try {
      if (module.size() > kUploadAboveBytes) {
        return persist(shared, [&] {
          auto held = unary(&Stub::QueryUpload, query, shared).held_bytes();
          std::size_t begin = std::min<std::uint64_t>(held, module.size());
          shared.arrived(begin);
          return make(shared, [&](auto* context) { return send(module, begin, shared, context); });
        });
      }
    } catch (const WasmkilnError& error) {
      if (error.details().reason == "UPLOAD_INTERRUPTED") {
        shared.wait(kOtherUpload);
        return {};
      }
      if (error.details().code != grpc::StatusCode::UNIMPLEMENTED) throw;
    }
    v1::LoadRequest request;
    request.set_module(module.data(), module.size());
    request.set_engine(shared.how.engine);
    return persist(shared, [&] { return unary(&Stub::Load, request, shared); });
  }

  // Make an Upload call.
  v1::LoadResponse send(std::string_view module, std::size_t at, const Shared& shared,
                        grpc::ClientContext* context) const {
    v1::UploadResponse response;
    auto writer = stub->Upload(context, &response);
    v1::UploadRequest next;
    next.set_sha256(shared.module);
    next.set_size_bytes(module.size());
    next.set_engine(shared.how.engine);
    do {
      std::string_view piece = module.substr(at, kPieceBytes);
      next.set_offset(at);
      next.set_data(piece.data(), piece.size());
      if (!writer->Write(next)) break;  // the call has ended, and says why
      next.Clear();
      at += piece.size();
    } while (at < module.size());
    writer->WritesDone();
    grpc::Status status = writer->Finish();
    if (!status.ok()) throw_status(status, address);
    return response.loaded();
  }

  // Make a Compile call. If it is cut, go on behind what came.
  Artifact ask(v1::CompileRequest request, Shared& shared) const {
    Artifact got;
    // The digest of what the daemon compiled for this call, once a header has told it.
    std::string made;
    return persist(shared, [&] {
      while (true) {
        if (request.skip_cache_lookup() && got.header.has_engine()) {
          made = got.header.artifact_sha256();
          request.set_skip_cache_lookup(false);
        }
        request.set_offset_bytes(got.bytes.size());
        request.set_artifact_sha256(got.bytes.empty() ? "" : got.header.artifact_sha256());
        make(shared, [&](auto* context) { receive(request, shared, context, &got); });
        bool is_made = made.empty() || made == got.header.artifact_sha256();
        if (is_made || got.header.origin() == v1::ORIGIN_COMPILED) return std::move(got);
        // The daemon has lost it, and an older artifact is no answer.
        got = Artifact();
        made.clear();
        request.set_skip_cache_lookup(true);
      }
    });
  }

  void receive(const v1::CompileRequest& request, Shared& shared,
               grpc::ClientContext* context, Artifact* got) const {
    auto reader = stub->Compile(context, request);
    v1::CompileResponse message;
    bool is_begun = false;
    std::string& bytes = got->bytes;
    v1::ArtifactHeader& header = got->header;
    try {
      while (reader->Read(&message)) {
        const std::string* part = &message.chunk();
        if (message.has_header()) {
          require(!is_begun, "the daemon's answer has two headers");
          check_header(request, shared.module, message.header(), options.max_artifact_bytes);
          is_begun = true;
          header = message.header();
          bytes.resize(header.offset_bytes());
          part = &message.header().inline_artifact();
        }
        std::uint64_t limit = is_begun ? header.size_bytes() : 0;
        require(bytes.size() + part->size() <= limit,
                "the artifact is longer than in its header, or before it");
        bytes += *part;
        shared.arrived(bytes.size());
      }
    } catch (...) {
      context->TryCancel();
      reader->Finish();
      throw;
    }
    grpc::Status status = reader->Finish();
    if (!status.ok()) throw_status(status, address);
    require(is_begun, "the daemon's answer ended without a header");
    require(bytes.size() == header.size_bytes(), "the artifact ended before its last byte");
    std::string actual = sha256_hex(bytes);
    require(actual == header.artifact_sha256(),
            "the artifact's bytes have the SHA-256 " + actual + ", and its header says another");
    if (!trusted.empty()) check_attestation(header, trusted);
    header.clear_inline_artifact();
    header.clear_host_file();
  }

  // Ask by the digest; upload the module, if there is one, where the daemon lacks it.
  Artifact compile(const std::string& sha256, const std::string_view* module,
                   const CompileOptions& how) const {
    Shared shared(how, options.timeout, sha256);
    v1::CompileRequest request;
    request.set_sha256(sha256);
    request.set_engine(how.engine);
    request.set_target(how.target);
    request.set_cpu(how.cpu);
    request.mutable_settings()->insert(how.settings.begin(), how.settings.end());
    request.set_inline_limit_bytes(kInlineBytes);
    request.set_skip_cache_lookup(how.skip_cache_lookup);
    request.set_accept_fast(how.accept_fast);
    const std::string section = how.compatibility ? section_of(*how.compatibility) : "";
    if (how.compatibility) request.set_compatibility(sha256_raw(section));
    // Where no tier takes so large a module, it has to come with the request.
    bool is_loaded = module && module->size() <= kUploadAboveBytes;
    while (true) {
      try {
        return ask(request, shared);
      } catch (const WasmkilnError& error) {
        const std::string& reason = error.details().reason;
        if (reason == "COMPATIBILITY_UNKNOWN" && request.compatibility() != section) {
          request.set_compatibility(section);
          continue;
        }
        if (!module || reason != "MODULE_NOT_LOADED") throw;
      }
      if (is_loaded) {
        request.set_module(module->data(), module->size());
        module = nullptr;
      } else {
        is_loaded = load(*module, shared).has_value();
      }
    }
  }
};

Client::Client(const std::string& address, ClientOptions options)
    : state_(std::make_unique<State>()) {
  check_address(address);
  usable(options.token);
  bool has_token = !options.token.empty() || !options.token_file.empty();
  if (has_token && !options.tls && !is_local(address)) {
    throw std::invalid_argument("cannot send a token to " + address +
                                " in plaintext: anybody on the way could read it; set tls");
  }
  for (const std::string& text : options.trusted_keys) state_->trusted.merge(parse_keys(text));
  state_->address = address;
  state_->stub = v1::ModuleService::NewStub(channel_to(address, options));
  state_->options = std::move(options);
}

Client::~Client() = default;
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;

Artifact Client::compile(std::string_view module, const CompileOptions& options) {
  return state_->compile(sha256_hex(module), &module, options);
}

Artifact Client::compile_digest(const std::string& sha256, const CompileOptions& options) {
  if (!is_digest(sha256)) {
    throw std::invalid_argument("a digest is 64 lowercase hexadecimal digits");
  }
  return state_->compile(sha256, nullptr, options);
}

v1::LoadResponse Client::load(std::string_view module, const CompileOptions& options) {
  Shared shared(options, state_->options.timeout, sha256_hex(module));
  std::optional<v1::LoadResponse> loaded;
  while (!loaded) loaded = state_->load(module, shared);
  return state_->make(shared, [&](grpc::ClientContext*) {
    if (loaded->sha256() == shared.module) return *loaded;
    refuse("UNEXPECTED_ANSWER", "loaded " + shared.module + ", the answer is about another");
  });
}

std::vector<v1::ArtifactKey> Client::find_missing(const std::vector<v1::ArtifactKey>& keys,
                                                  const CompileOptions& options) {
  Shared shared(options, state_->options.timeout, "");
  v1::FindMissingRequest request;
  request.mutable_keys()->Assign(keys.begin(), keys.end());
  auto answer = state_->persist(shared, [&] {
    return state_->unary(&v1::ModuleService::Stub::FindMissing, request, shared);
  });
  return {answer.missing().begin(), answer.missing().end()};
}

v1::StatsResponse Client::stats(const CompileOptions& options) {
  return state_->unary(&v1::ModuleService::Stub::Stats, v1::StatsRequest(),
                       {options, state_->options.timeout, ""});
}

v1::GetCapabilitiesResponse Client::capabilities(const CompileOptions& options) {
  return state_->unary(&v1::ModuleService::Stub::GetCapabilities, v1::GetCapabilitiesRequest(),
                       {options, state_->options.timeout, ""});
}

}  // namespace wasmkiln
