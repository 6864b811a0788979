#include "wasmkiln/errors.h"

#include <utility>

namespace wasmkiln {
namespace {

using Throw = void (*)(const std::string&, ErrorDetails);

template <typename Error>
void raise(const std::string& message, ErrorDetails details) {
  throw Error(message, std::move(details));
}

const std::map<std::string, Throw>& by_reason() {
  static const std::map<std::string, Throw> classes = {
      {"INVALID_REQUEST", raise<InvalidRequest>},
      {"NOT_WASM", raise<NotWasm>},
      {"MODULE_INVALID", raise<ModuleInvalid>},
      {"MODULE_TOO_LARGE", raise<ModuleTooLarge>},
      {"DIGEST_MISMATCH", raise<DigestMismatch>},
      {"ENGINE_UNKNOWN", raise<EngineUnknown>},
      {"ENGINE_REMOVED", raise<EngineRemoved>},
      {"TARGET_UNSUPPORTED", raise<TargetUnsupported>},
      {"SETTING_UNKNOWN", raise<SettingUnknown>},
      {"ENGINE_LACKS_FEATURE", raise<EngineLacksFeature>},
      {"MODULE_NOT_LOADED", raise<ModuleNotLoaded>},
      {"CREDENTIALS_MISSING", raise<CredentialsMissing>},
      {"CREDENTIALS_INVALID", raise<CredentialsInvalid>},
      {"ROLE_MISSING", raise<RoleMissing>},
      {"COMPILE_TIMEOUT", raise<CompileTimeout>},
      {"COMPILE_MEMORY_LIMIT", raise<CompileMemoryLimit>},
      {"ARTIFACT_TOO_LARGE", raise<ArtifactTooLarge>},
      {"COMPILER_CRASHED", raise<CompilerCrashed>},
      {"INTERNAL", raise<InternalFailure>},
      {"MODULE_QUARANTINED", raise<ModuleQuarantined>},
      {"COMPILE_QUEUE_FULL", raise<QueueFull>},
      {"QUOTA_EXCEEDED", raise<QuotaExceeded>},
      {"WORKER_UNAVAILABLE", raise<WorkerUnavailable>},
      {"SERVER_DRAINING", raise<ServerDraining>},
      {"CONNECTION_FAILED", raise<ConnectionFailed>},
      {"DEADLINE_EXCEEDED", raise<DeadlineExceeded>},
      {"ARTIFACT_MISMATCH", raise<ArtifactMismatch>},
      {"ATTESTATION_INVALID", raise<AttestationInvalid>},
      {"UNEXPECTED_ANSWER", raise<UnexpectedAnswer>},
  };
  return classes;
}

}  // namespace

void throw_error(const std::string& message, ErrorDetails details) {
  auto found = by_reason().find(details.reason);
  if (found != by_reason().end()) found->second(message, std::move(details));
  throw WasmkilnError(message, std::move(details));
}

}  // namespace wasmkiln
