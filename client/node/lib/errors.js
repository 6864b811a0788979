'use strict'
// One error class for each reason; docs/reference/errors.md of wasmkiln says what to do.

const { status } = require('@grpc/grpc-js')

/**
 * The base of every failure of a call.
 *
 * Decide by `reason` (or by the subclass), and show `message`. A reason that this version does not
 * know, as a newer daemon may send, becomes a plain WasmkilnError with that reason.
 */
class WasmkilnError extends Error {
  constructor(message, details) {
    super(message)
    this.name = new.target.name
    // What the client itself finds wrong with an answer has no other code.
    this.code = status.DATA_LOSS
    this.reason = new.target.REASON ?? ''
    this.metadata = {}
    this.retryAfterMs = undefined
    this.fieldViolations = []
    this.requestId = ''
    Object.assign(this, details)
  }
}
exports.WasmkilnError = WasmkilnError

const named = (REASON) => class extends WasmkilnError { static REASON = REASON }
exports.InvalidRequest = class InvalidRequest extends named('INVALID_REQUEST') {}
exports.NotWasm = class NotWasm extends named('NOT_WASM') {}
exports.ModuleInvalid = class ModuleInvalid extends named('MODULE_INVALID') {}
exports.ModuleTooLarge = class ModuleTooLarge extends named('MODULE_TOO_LARGE') {}
exports.DigestMismatch = class DigestMismatch extends named('DIGEST_MISMATCH') {}
exports.UploadInterrupted = class UploadInterrupted extends named('UPLOAD_INTERRUPTED') {}
exports.EngineUnknown = class EngineUnknown extends named('ENGINE_UNKNOWN') {}
exports.EngineRemoved = class EngineRemoved extends named('ENGINE_REMOVED') {}
exports.TargetUnsupported = class TargetUnsupported extends named('TARGET_UNSUPPORTED') {}
exports.SettingUnknown = class SettingUnknown extends named('SETTING_UNKNOWN') {}
exports.CompatibilityUnknown = class CompatibilityUnknown extends named('COMPATIBILITY_UNKNOWN') {}
exports.CompatibilityUnsupported = class CompatibilityUnsupported extends named('COMPATIBILITY_UNSUPPORTED') {}
exports.EngineLacksFeature = class EngineLacksFeature extends named('ENGINE_LACKS_FEATURE') {}
exports.CredentialsMissing = class CredentialsMissing extends named('CREDENTIALS_MISSING') {}
exports.CredentialsInvalid = class CredentialsInvalid extends named('CREDENTIALS_INVALID') {}
exports.RoleMissing = class RoleMissing extends named('ROLE_MISSING') {}
exports.ModuleNotLoaded = class ModuleNotLoaded extends named('MODULE_NOT_LOADED') {}
exports.CompileTimeout = class CompileTimeout extends named('COMPILE_TIMEOUT') {}
exports.CompileMemoryLimit = class CompileMemoryLimit extends named('COMPILE_MEMORY_LIMIT') {}
exports.ArtifactTooLarge = class ArtifactTooLarge extends named('ARTIFACT_TOO_LARGE') {}
exports.CompilerCrashed = class CompilerCrashed extends named('COMPILER_CRASHED') {}
exports.JobEnded = class JobEnded extends named('JOB_ENDED') {}
exports.InternalFailure = class InternalFailure extends named('INTERNAL') {}
exports.ModuleQuarantined = class ModuleQuarantined extends named('MODULE_QUARANTINED') {}
exports.CompileQueueFull = class CompileQueueFull extends named('COMPILE_QUEUE_FULL') {}
// Its name before 0.7.
exports.QueueFull = exports.CompileQueueFull
exports.QuotaExceeded = class QuotaExceeded extends named('QUOTA_EXCEEDED') {}
exports.WorkerUnavailable = class WorkerUnavailable extends named('WORKER_UNAVAILABLE') {}
exports.ServerDraining = class ServerDraining extends named('SERVER_DRAINING') {}
// The client's own: no daemon listens at the address, TLS fails, or the connection was lost;
exports.ConnectionFailed = class ConnectionFailed extends named('CONNECTION_FAILED') {}
// the daemon did not answer within the call's own timeoutMs;
exports.DeadlineExceeded = class DeadlineExceeded extends named('DEADLINE_EXCEEDED') {}
// an artifact differs from its header, or its header from what the call asked for;
exports.ArtifactMismatch = class ArtifactMismatch extends named('ARTIFACT_MISMATCH') {}
// no trusted key signed this artifact: metadata.cause is unsigned, stranger or mismatch;
exports.AttestationInvalid = class AttestationInvalid extends named('ATTESTATION_INVALID') {}
// the client cannot read the daemon's answer, or it is about something else.
exports.UnexpectedAnswer = class UnexpectedAnswer extends named('UNEXPECTED_ANSWER') {}
