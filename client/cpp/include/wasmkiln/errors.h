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
  const std::map<std::string, std::string>& metadata() const { return details_.metadata; }
  std::optional<std::chrono::milliseconds> retry_after() const { return details_.retry_after; }
  const std::vector<FieldViolation>& field_violations() const {
    return details_.field_violations;
  }
  const std::string& request_id() const { return details_.request_id; }
  void set_request_id(const std::string& id) { details_.request_id = id; }

 private:
  ErrorDetails details_;
};

// One class for each reason, so that a program can catch what it can handle: ModuleInvalid for
// "MODULE_INVALID", and so on. After retry_after() it makes sense to call again where the daemon
// cannot do it now; the last five are the client's own.
#define WASMKILN_ERRORS(X)                      \
  X(InvalidRequest, "INVALID_REQUEST")          \
  X(NotWasm, "NOT_WASM")                        \
  X(ModuleInvalid, "MODULE_INVALID")            \
  X(ModuleTooLarge, "MODULE_TOO_LARGE")         \
  X(DigestMismatch, "DIGEST_MISMATCH")          \
  X(EngineUnknown, "ENGINE_UNKNOWN")            \
  X(EngineRemoved, "ENGINE_REMOVED")            \
  X(TargetUnsupported, "TARGET_UNSUPPORTED")    \
  X(SettingUnknown, "SETTING_UNKNOWN")          \
  X(EngineLacksFeature, "ENGINE_LACKS_FEATURE") \
  X(ModuleNotLoaded, "MODULE_NOT_LOADED")       \
  X(CredentialsMissing, "CREDENTIALS_MISSING")  \
  X(CredentialsInvalid, "CREDENTIALS_INVALID")  \
  X(RoleMissing, "ROLE_MISSING")                \
  X(CompileTimeout, "COMPILE_TIMEOUT")          \
  X(CompileMemoryLimit, "COMPILE_MEMORY_LIMIT") \
  X(ArtifactTooLarge, "ARTIFACT_TOO_LARGE")     \
  X(CompilerCrashed, "COMPILER_CRASHED")        \
  X(InternalFailure, "INTERNAL")                \
  X(ModuleQuarantined, "MODULE_QUARANTINED")    \
  X(QueueFull, "COMPILE_QUEUE_FULL")            \
  X(QuotaExceeded, "QUOTA_EXCEEDED")            \
  X(WorkerUnavailable, "WORKER_UNAVAILABLE")    \
  X(ServerDraining, "SERVER_DRAINING")          \
  X(ConnectionFailed, "CONNECTION_FAILED")      \
  X(DeadlineExceeded, "DEADLINE_EXCEEDED")      \
  X(ArtifactMismatch, "ARTIFACT_MISMATCH")      \
  X(AttestationInvalid, "ATTESTATION_INVALID")  \
  X(UnexpectedAnswer, "UNEXPECTED_ANSWER")

#define WASMKILN_ERROR(NAME, REASON)    \
  class NAME : public WasmkilnError {   \
   public:                              \
    using WasmkilnError::WasmkilnError; \
  };
WASMKILN_ERRORS(WASMKILN_ERROR)
#undef WASMKILN_ERROR

// Throw the class for details.reason, or a plain WasmkilnError for a reason that this version
// does not know.
[[noreturn]] void throw_error(const std::string& message, ErrorDetails details);

}  // namespace wasmkiln
