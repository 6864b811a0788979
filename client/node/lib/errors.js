'use strict'
// One error class for each reason of the contract; docs/reference/errors.md of wasmkiln says what to do.

const { status } = require('@grpc/grpc-js')

/**
 * The base of every failure of a call.
 *
 * Decide by `reason` (or by the subclass), and show `message`. A reason that this version does not
 * know, as a newer daemon may send, becomes a plain WasmkilnError with that reason.
 */
class WasmkilnError extends Error {
  constructor(message, details = {}) {
    super(message)
    this.name = new.target.name
    /** The gRPC status code, as a number. */
    this.code = details.code ?? new.target.CODE ?? status.UNKNOWN
    /** The contract's word for the condition; '' where there is none. */
    this.reason = details.reason ?? new.target.REASON ?? ''
    /** What the contract lists for the reason: texts by name. */
    this.metadata = { ...details.metadata }
    /** How long to wait before another try; undefined where the daemon did not say. */
    this.retryAfterMs = details.retryAfterMs
    /** The fields of the request that the daemon refused: { field, description }. */
    this.fieldViolations = details.fieldViolations ?? []
    /** What the daemon's log calls this call; '' where no call was made. */
    this.requestId = details.requestId ?? ''
  }
}

const FROM_THE_DAEMON = {
  InvalidRequest: ['INVALID_REQUEST', status.INVALID_ARGUMENT],
  NotWasm: ['NOT_WASM', status.INVALID_ARGUMENT],
  ModuleInvalid: ['MODULE_INVALID', status.INVALID_ARGUMENT],
  ModuleTooLarge: ['MODULE_TOO_LARGE', status.INVALID_ARGUMENT],
  DigestMismatch: ['DIGEST_MISMATCH', status.INVALID_ARGUMENT],
  EngineUnknown: ['ENGINE_UNKNOWN', status.INVALID_ARGUMENT],
  EngineRemoved: ['ENGINE_REMOVED', status.FAILED_PRECONDITION],
  TargetUnsupported: ['TARGET_UNSUPPORTED', status.INVALID_ARGUMENT],
  SettingUnknown: ['SETTING_UNKNOWN', status.INVALID_ARGUMENT],
  EngineLacksFeature: ['ENGINE_LACKS_FEATURE', status.FAILED_PRECONDITION],
  CredentialsMissing: ['CREDENTIALS_MISSING', status.UNAUTHENTICATED],
  CredentialsInvalid: ['CREDENTIALS_INVALID', status.UNAUTHENTICATED],
  RoleMissing: ['ROLE_MISSING', status.PERMISSION_DENIED],
  ModuleNotLoaded: ['MODULE_NOT_LOADED', status.NOT_FOUND],
  CompileTimeout: ['COMPILE_TIMEOUT', status.DEADLINE_EXCEEDED],
  CompileMemoryLimit: ['COMPILE_MEMORY_LIMIT', status.RESOURCE_EXHAUSTED],
  ArtifactTooLarge: ['ARTIFACT_TOO_LARGE', status.RESOURCE_EXHAUSTED],
  CompilerCrashed: ['COMPILER_CRASHED', status.INTERNAL],
  InternalFailure: ['INTERNAL', status.INTERNAL],
  ModuleQuarantined: ['MODULE_QUARANTINED', status.FAILED_PRECONDITION],
  QueueFull: ['COMPILE_QUEUE_FULL', status.RESOURCE_EXHAUSTED],
  QuotaExceeded: ['QUOTA_EXCEEDED', status.RESOURCE_EXHAUSTED],
  WorkerUnavailable: ['WORKER_UNAVAILABLE', status.UNAVAILABLE],
  ServerDraining: ['SERVER_DRAINING', status.UNAVAILABLE],
}

const FROM_THE_CLIENT = {
  // No daemon listens at the address, TLS fails, or the connection was lost.
  ConnectionFailed: ['CONNECTION_FAILED', status.UNAVAILABLE],
  // The daemon did not answer within the call's own timeoutMs.
  DeadlineExceeded: ['DEADLINE_EXCEEDED', status.DEADLINE_EXCEEDED],
  // An artifact differs from its header, or its header from what the call asked for.
  ArtifactMismatch: ['ARTIFACT_MISMATCH', status.DATA_LOSS],
  // No trusted key signed this artifact. metadata.cause: unsigned, stranger or mismatch.
  AttestationInvalid: ['ATTESTATION_INVALID', status.DATA_LOSS],
  // The client cannot read the daemon's answer, or it is about something else.
  UnexpectedAnswer: ['UNEXPECTED_ANSWER', status.DATA_LOSS],
}

function classOf(name, reason, code) {
  const kind = { [name]: class extends WasmkilnError {} }[name]
  kind.REASON = reason
  kind.CODE = code
  return kind
}

const classes = {}
const byReason = new Map()
for (const [name, [reason, code]] of Object.entries(FROM_THE_DAEMON)) {
  classes[name] = classOf(name, reason, code)
  byReason.set(reason, classes[name])
}
for (const [name, [reason, code]] of Object.entries(FROM_THE_CLIENT)) {
  classes[name] = classOf(name, reason, code)
}

module.exports = { WasmkilnError, ...classes, byReason }
