'use strict'
// Makes calls: deadline, metadata, abort signal, and errors as a caller sees them.

const crypto = require('node:crypto')
const { Metadata } = require('@grpc/grpc-js')
const { authorization, connect } = require('./channel')
const { UnexpectedAnswer } = require('./errors')
const { method } = require('./protos')
const { errorFromGrpc } = require('./status')

const DEFAULT_TIMEOUT_MS = 60_000
// A year: gRPC reads a number that does not fit as the past.
const MAX_TIMEOUT_MS = 365 * 24 * 3_600_000
const PRIORITIES = new Set(['interactive', 'background'])
const asItIs = (bytes) => bytes

/** The calls to one address. */
class Calls {
  #grpc
  #about
  #timeoutMs
  #authorization

  constructor(address, options) {
    this.#timeoutMs = checkedTimeout(options.timeoutMs ?? DEFAULT_TIMEOUT_MS)
    this.#grpc = connect(address, options.tls)
    this.#authorization = authorization(address, options)
    this.#about = { address, tls: Boolean(options.tls) }
  }

  /** Return what the requests of one call of a method share: its deadline, signal and name. */
  begin({ timeoutMs = this.#timeoutMs, signal, priority = 'interactive' }, moduleSha256) {
    checkedTimeout(timeoutMs)
    if (!PRIORITIES.has(priority)) throw new TypeError("priority is 'interactive' or 'background'")
    // The daemon's log has it.
    const requestId = crypto.randomBytes(8).toString('hex')
    const deadline = Date.now() + timeoutMs
    return { ...this.#about, requestId, timeoutMs, deadline, priority, signal, moduleSha256 }
  }

  /** Return the decoded answer. */
  async unary(name, request, call) {
    const { path, encode, decode } = method(name)
    call.signal?.throwIfAborted()
    const bytes = await new Promise((resolve, reject) => {
      const { metadata, options } = this.#prepare(call)
      const running = this.#grpc.makeUnaryRequest(
        ...[path, asItIs, asItIs, encode(request), metadata, options],
        (failure, answer) => {
          stop()
          if (failure) reject(this.#error(failure, call))
          else resolve(answer)
        },
      )
      const stop = cancelWith(call.signal, running)
    })
    return decoded(decode, bytes)
  }

  /** Hand each decoded message of the answer to `take`, and end when the answer ends. */
  async stream(name, request, call, take) {
    const { path, encode, decode } = method(name)
    call.signal?.throwIfAborted()
    await new Promise((resolve, reject) => {
      const { metadata, options } = this.#prepare(call)
      const running = this.#grpc.makeServerStreamRequest(
        ...[path, asItIs, asItIs, encode(request), metadata, options],
      )
      const stop = cancelWith(call.signal, running)
      running.on('data', (bytes) => {
        try {
          take(decoded(decode, bytes))
        } catch (error) {
          stop()
          reject(error)
          running.cancel()
        }
      })
      running.on('error', (failure) => {
        stop()
        reject(this.#error(failure, call))
      })
      running.on('end', () => {
        stop()
        resolve()
      })
    })
  }

  close() {
    this.#grpc.close()
  }

  #prepare(call) {
    const metadata = new Metadata()
    metadata.set('x-request-id', call.requestId)
    if (call.priority !== 'interactive') metadata.set('wasmkiln-priority', call.priority)
    // A balancer that routes by it sends all calls about a module to the same daemon.
    if (call.moduleSha256) metadata.set('wasmkiln-module', call.moduleSha256)
    const authorization = this.#authorization()
    if (authorization) metadata.set('authorization', authorization)
    return { metadata, options: { deadline: call.deadline } }
  }

  #error(failure, call) {
    return call.signal?.aborted ? call.signal.reason : errorFromGrpc(failure, call)
  }
}

/** Cancel the call when the signal is aborted. Return a function that ends this. */
function cancelWith(signal, running) {
  const cancel = () => running.cancel()
  signal?.addEventListener('abort', cancel, { once: true })
  return () => signal?.removeEventListener('abort', cancel)
}

function decoded(decode, bytes) {
  try {
    return decode(bytes)
  } catch {
    throw new UnexpectedAnswer("cannot read the daemon's answer: it is not the message expected")
  }
}

function checkedTimeout(timeoutMs) {
  if (!(timeoutMs > 0 && timeoutMs <= MAX_TIMEOUT_MS)) {
    throw new RangeError('timeoutMs has to be a positive number, a year at most')
  }
  return timeoutMs
}

module.exports = { Calls }
