// Client of a wasmkiln daemon: digest first, uploads what is missing, checks what comes back.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "wasmkiln/errors.h"
#include "wasmkiln/v1/module_service.pb.h"

namespace grpc {
class ClientContext;
}

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
  // Public keys of daemons in PEM; read_keys() has those of a file or folder. With none, the client
  // checks digests only.
  std::vector<std::string> trusted_keys;
  // Of each call that gives no other.
  std::chrono::milliseconds timeout{60000};
  std::uint64_t max_artifact_bytes = std::uint64_t{1} << 30;
  // gRPC's service configuration as JSON, for example to choose a load balancer; "" for none.
  std::string service_config;
};

// Return a file's content. Throw std::invalid_argument if it cannot be read.
std::string read_file(const std::string& path);

// Return the public keys in a PEM file, or in the files *.pem of a folder. Of a folder, the
// revocations in revoked/ count too, which is in it or, where it is called "trusted", beside it.
// Throw std::invalid_argument where no key is left, or a file cannot be read.
std::vector<std::string> read_keys(const std::string& path);

// Ends calls from another thread, those that run and those that begin later: they throw a
// WasmkilnError whose code is 1, CANCELLED.
class Cancellation {
 public:
  void cancel();

 private:
  friend class Call;
  friend struct Shared;
  std::mutex mutex_;
  std::condition_variable cancelled_;
  bool is_cancelled_ = false;
  std::set<grpc::ClientContext*> calls_;
};

// For what to compile, and how.
struct CompileOptions {
  // An id ("wasmtime-50.0.1"), a name ("wasmtime"), or empty for the daemon's default.
  std::string engine;
  // Empty for the daemon's host, and for the level that its capabilities show.
  std::string target;
  std::string cpu;
  // As capabilities() lists them; the others keep the engine's default.
  std::map<std::string, std::string> settings;
  // Anything that the host's own wasmtime compiled, such as the empty module, or the section
  // ".wasmtime.engine" of it. The daemon then chooses code that this engine loads: leave the four
  // above empty.
  std::optional<std::string> compatibility;
  // Whether the daemon compiles even if it has the artifact.
  bool skip_cache_lookup = false;
  // Whether code of the engine's fast compiler will do (header.is_fast()), while the daemon
  // compiles the optimised code behind other work.
  bool accept_fast = false;
  // Whether the call waits behind all others.
  bool is_background = false;
  // Instead of the client's own.
  std::optional<std::chrono::milliseconds> timeout;
  // Where another thread may end the call.
  std::shared_ptr<Cancellation> cancellation;
};

// An artifact that was checked: of this module, for this engine, whole, and signed by a trusted
// key if the client has any.
struct Artifact {
  v1::ArtifactHeader header;
  std::string bytes;
};

// May be used by many threads at once. Each call throws a WasmkilnError; arguments that make no
// sense are a std::invalid_argument. A call that fetches code or sends a module tries again while
// its time lasts: where no daemon answers, or it is busy. What was interrupted resumes.
class Client {
 public:
  // An address: host:port, unix:/path or unix-abstract:name; dns:, ipv4:, ipv6: or xds: before
  // others.
  explicit Client(const std::string& address, ClientOptions options = {});
  ~Client();
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;

  // Ask by the module's digest; upload the module if the daemon lacks it.
  Artifact compile(std::string_view module, const CompileOptions& options = {});
  // The same for a module that the daemon has; else MODULE_NOT_LOADED.
  Artifact compile_digest(const std::string& sha256, const CompileOptions& options = {});
  // Validate a module by the engine of the options and store it, to be compiled by its digest.
  v1::LoadResponse load(std::string_view module, const CompileOptions& options = {});
  // Return those of the keys whose artifacts no tier of the daemon has.
  std::vector<v1::ArtifactKey> find_missing(const std::vector<v1::ArtifactKey>& keys,
                                            const CompileOptions& options = {});
  // These two are asked once. All three take of the options when and by whom the call ends.
  v1::StatsResponse stats(const CompileOptions& options = {});
  v1::GetCapabilitiesResponse capabilities(const CompileOptions& options = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace wasmkiln
