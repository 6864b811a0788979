// Client of a wasmkiln daemon: digest first, uploads what is missing, checks what comes back.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "wasmkiln/errors.h"
#include "wasmkiln/v1/module_service.pb.h"

namespace wasmkiln {

// TLS to the daemon. Each is PEM text.
struct Tls {
  // The CA of the daemon's certificate; empty for those that the system trusts.
  std::string ca;
  // The caller's own certificate and key, where the daemon asks for one.
  std::string cert;
  std::string key;
};

struct ClientOptions {
  // Without it the connection is not encrypted.
  std::optional<Tls> tls;
  // Sent with each call. Needs TLS, unless the daemon is on this machine.
  std::string token;
  // Instead: a file that is read for each call, so that a new token counts at once.
  std::string token_file;
  // Public keys of daemons: PEM, 64 hexadecimal digits, or 32 bytes. With none, the client checks
  // digests only.
  std::vector<std::string> trusted_keys;
  // Of each call that gives no other.
  std::chrono::milliseconds timeout{60000};
  // Take a file of the daemon's host store instead of bytes, where the daemon is on this machine.
  bool host_store = true;
  std::uint64_t max_artifact_bytes = std::uint64_t{1} << 30;
  // gRPC's service configuration as JSON, for example to choose a load balancer; "" for none.
  std::string service_config;
};

// Ends calls from another thread, those that run and those that begin later: they throw a
// WasmkilnError whose code is 1, CANCELLED.
class Cancellation {
 public:
  Cancellation();
  ~Cancellation();
  void cancel();

 private:
  friend class Cancellable;
  struct State;
  std::unique_ptr<State> state_;
};

enum class Priority { kInteractive, kBackground };

struct CallOptions {
  std::optional<std::chrono::milliseconds> timeout;
  Priority priority = Priority::kInteractive;
  // Where another thread may end the call.
  std::shared_ptr<Cancellation> cancellation;
};

struct CompileOptions : CallOptions {
  // An id ("wasmtime-50.0.1"), a name ("wasmtime"), or empty for the daemon's default.
  std::string engine;
  // Empty for the daemon's host, and for the level that its capabilities show.
  std::string target;
  std::string cpu;
  // As capabilities() lists them; the others keep the engine's default.
  std::map<std::string, std::string> settings;
};

// An artifact that was checked: of this module, for this engine, whole, and signed by a trusted
// key if the client has any. Copies share one open file.
class Artifact {
 public:
  const v1::ArtifactHeader& header() const { return header_; }
  // "memory", "host_store", "redis", "compiled" or "joined_flight".
  std::string origin() const;

  // Whether an engine can map the artifact from path().
  bool is_file() const { return file_ != nullptr; }
  // /proc/self/fd/N: give it to the engine, then call check_unchanged(). Empty without a file.
  std::string path() const;
  // Where the file was found, to show it. Empty without a file.
  const std::string& host_file() const { return host_file_; }
  // The artifact's bytes; reads the file where there is one. Throws ArtifactMismatch.
  std::string bytes() const;
  // Throws ArtifactMismatch if somebody wrote to the file since it was checked: throw away what
  // was loaded from it.
  void check_unchanged() const;

 private:
  friend class Client;
  friend class CompileStream;
  struct OpenFile;
  v1::ArtifactHeader header_;
  std::string bytes_;
  std::string host_file_;
  std::shared_ptr<const OpenFile> file_;
};

// May be used by many threads at once. Each call throws a WasmkilnError; arguments that make no
// sense are a std::invalid_argument. There are no retries: every call may be repeated.
class Client {
 public:
  // An address: host:port, unix:/path, or any name that gRPC resolves.
  explicit Client(const std::string& address, ClientOptions options = {});
  ~Client();
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;

  // Ask by the module's digest; upload the module if the daemon lacks it.
  Artifact compile(std::string_view module, const CompileOptions& options = {});
  // The same for a module that the daemon has; else ModuleNotLoaded.
  Artifact compile_digest(const std::string& sha256, const CompileOptions& options = {});
  // Validate a module and store it, to be compiled by its digest.
  v1::LoadResponse load(std::string_view module, const std::string& engine = {},
                        const CallOptions& options = {});
  v1::StatsResponse stats(const CallOptions& options = {});
  v1::GetCapabilitiesResponse capabilities(const CallOptions& options = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace wasmkiln
