// What a call of wasmkiln::Client throws.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace wasmkiln {

// A field of the request that the daemon refused, and why.
struct FieldViolation {
  std::string field;
  std::string description;
};

struct ErrorDetails {
  // The status code of gRPC.
  int code = 2;
  // The contract's word for what is wrong, for example "MODULE_INVALID"; decide by it. Empty where
  // there is none.
  std::string reason;
  // What docs/reference/errors.md lists for the reason.
  std::map<std::string, std::string> metadata;
  // How long to wait before another try, where the daemon says so.
  std::optional<std::chrono::milliseconds> retry_after;
  std::vector<FieldViolation> field_violations;
  // What the daemon's log calls this request.
  std::string request_id;
};

// The base of every failure of a call.
class WasmkilnError : public std::runtime_error {
 public:
  WasmkilnError(const std::string& message, ErrorDetails details)
      : std::runtime_error(message), details_(std::move(details)) {}

  int code() const { return details_.code; }
  const std::string& reason() const { return details_.reason; }
  std::string message() const { return what(); }
  const std::map<std::string, std::string>& metadata() const { return details_.metadata; }
  std::optional<std::chrono::milliseconds> retry_after() const { return details_.retry_after; }
  const std::vector<FieldViolation>& field_violations() const {
    return details_.field_violations;
  }
  const std::string& request_id() const { return details_.request_id; }

 private:
  ErrorDetails details_;
};

// One class for each reason, so that a program can catch what it can handle.
#define WASMKILN_ERROR(NAME)                 \
  class NAME : public WasmkilnError {        \
   public:                                   \
    using WasmkilnError::WasmkilnError;      \
  };

// Refused by the daemon: the request or the module.
WASMKILN_ERROR(InvalidRequest)
WASMKILN_ERROR(NotWasm)
WASMKILN_ERROR(ModuleInvalid)
WASMKILN_ERROR(ModuleTooLarge)
WASMKILN_ERROR(DigestMismatch)
WASMKILN_ERROR(EngineUnknown)
WASMKILN_ERROR(EngineRemoved)
WASMKILN_ERROR(TargetUnsupported)
WASMKILN_ERROR(SettingUnknown)
WASMKILN_ERROR(EngineLacksFeature)
WASMKILN_ERROR(ModuleNotLoaded)
WASMKILN_ERROR(CredentialsMissing)
WASMKILN_ERROR(CredentialsInvalid)
WASMKILN_ERROR(RoleMissing)
// Failed in the daemon.
WASMKILN_ERROR(CompileTimeout)
WASMKILN_ERROR(CompileMemoryLimit)
WASMKILN_ERROR(ArtifactTooLarge)
WASMKILN_ERROR(CompilerCrashed)
WASMKILN_ERROR(InternalFailure)
// The daemon cannot do it now: see retry_after().
WASMKILN_ERROR(ModuleQuarantined)
WASMKILN_ERROR(QueueFull)
WASMKILN_ERROR(QuotaExceeded)
WASMKILN_ERROR(WorkerUnavailable)
WASMKILN_ERROR(ServerDraining)
// Thrown by the client itself.
WASMKILN_ERROR(ConnectionFailed)
WASMKILN_ERROR(DeadlineExceeded)
WASMKILN_ERROR(ArtifactMismatch)
WASMKILN_ERROR(AttestationInvalid)
WASMKILN_ERROR(UnexpectedAnswer)

#undef WASMKILN_ERROR

// Throw the class for details.reason, or a plain WasmkilnError for a reason that this version
// does not know.
[[noreturn]] void throw_error(const std::string& message, ErrorDetails details);

}  // namespace wasmkiln
