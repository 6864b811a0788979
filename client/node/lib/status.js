'use strict'
// Turns a failed gRPC call into the error that a caller sees.

const { status } = require('@grpc/grpc-js')
const errors = require('./errors')
const { decodeStatus } = require('./protos')
const { diagnose } = require('./connection-causes')

const DETAILS = 'grpc-status-details-bin'
const MESSAGE_TOO_LARGE = /received message larger than max(?: \((\d+) vs\. (\d+)\))?/i

/**
 * Return the WasmkilnError for a grpc.ServiceError. Throw nothing.
 *
 * `call` has the address, timeoutMs and requestId, which appear in messages.
 */
function errorFromGrpc(failure, call) {
  const text = failure.details || failure.message || ''
  const found = {
    code: failure.code ?? status.UNKNOWN,
    reason: '',
    metadata: {},
    fieldViolations: [],
    requestId: call.requestId,
  }
  for (const [name, detail] of detailsOf(failure)) {
    if (name === 'google.rpc.ErrorInfo' && detail.domain === 'wasmkiln') {
      found.reason = detail.reason
      found.metadata = detail.metadata ?? {}
      found.requestId = found.metadata.request_id || call.requestId
    } else if (name === 'google.rpc.RetryInfo') {
      const { seconds = 0, nanos = 0 } = detail.retryDelay ?? {}
      found.retryAfterMs = Math.max(0, Math.ceil(seconds * 1000 + nanos / 1e6))
    } else if (name === 'google.rpc.BadRequest') {
      for (const { field, description } of detail.fieldViolations) {
        found.fieldViolations.push({ field, description })
      }
    }
  }
  if (!found.reason) {
    const plain = withoutReason(found.code, text, call)
    if (plain) return Object.assign(plain, { retryAfterMs: found.retryAfterMs })
  }
  const Kind = errors.byReason.get(found.reason) ?? errors.WasmkilnError
  let message = text || found.reason || status[found.code]
  if (Kind === errors.CredentialsMissing) {
    message += ' (in wasmkiln: token or tokenFile, or tls.cert)'
  }
  return new Kind(message, found)
}

/** Return the error for what gRPC itself reports, or undefined where it is none of these. */
function withoutReason(code, text, { address, timeoutMs, requestId, tls }) {
  const about = { requestId, metadata: { address, detail: text } }
  if (code === status.UNAVAILABLE) {
    const { cause, sentence } = diagnose(text, address, tls)
    const metadata = { ...about.metadata, ...(cause && { cause }) }
    return new errors.ConnectionFailed(sentence, { ...about, metadata })
  }
  if (code === status.DEADLINE_EXCEEDED) {
    return new errors.DeadlineExceeded(
      `no answer from ${address} within ${timeoutMs / 1000} s`,
      { ...about, metadata: { address, timeout_s: String(timeoutMs / 1000) } },
    )
  }
  if (code === status.UNIMPLEMENTED) {
    return new errors.WasmkilnError(
      `the daemon at ${address} does not serve this call: it is older than this client, or no` +
        ' wasmkiln daemon',
      { ...about, code },
    )
  }
  const large = code === status.RESOURCE_EXHAUSTED && MESSAGE_TOO_LARGE.exec(text)
  if (large) {
    const [, size, limit] = large
    return new errors.ModuleTooLarge(`the module is larger than the daemon accepts (${text})`, {
      code,
      requestId,
      metadata: size ? { size_bytes: size, limit_bytes: limit } : {},
    })
  }
  return undefined
}

function detailsOf(failure) {
  try {
    return (failure.metadata?.get(DETAILS) ?? []).flatMap((bytes) => decodeStatus(bytes))
  } catch {
    return [] // damaged, or of another server: code and text still count
  }
}

module.exports = { errorFromGrpc }
