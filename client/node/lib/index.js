'use strict'
// The client: calls, their errors, and the artifacts that they return.

const crypto = require('node:crypto')
const fs = require('node:fs')
const { Readable } = require('node:stream')
const { setTimeout: sleep } = require('node:timers/promises')
const { Client: Connection, Metadata, credentials, status } = require('@grpc/grpc-js')
const { readTrustedKeys, verifyAttestation } = require('./attestation')
const errors = require('./errors')
const { sectionOf } = require('./engine-section')
const { hasChanged, isYoung, openHostFile, pathOf } = require('./host-file')
const protos = require('./protos')

// A daemon puts no larger artifact into its header's message.
const INLINE_LIMIT_BYTES = 65_536
// A chunk has 1 MiB at most, and Stats some hundred KiB.
const MAX_RECEIVED_BYTES = 64 * 1024 * 1024
// How long the client asks for bytes after it could not use a file.
const NO_FILES_MS = 60_000
// Larger modules go in pieces, of which a cut costs one.
const UPLOAD_ABOVE_BYTES = 8 * 1024 * 1024
const PIECE_BYTES = 256 * 1024
// The first pause before a retry, and the longest; what took an upload over gets ten times as long.
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS] = [100, 2_000]
// FindMissing takes 10,000 keys, and 2 MiB.
const KEYS_AT_ONCE = 1_000
// What chooses an engine's fast compiler.
const FAST = { strategy: 'winch', compiler: 'singlepass' }
// Settings that artifacts of earlier daemons do not state, and what these artifacts have.
const UNSTATED = {
  strategy: 'cranelift',
  compiler: 'cranelift',
  collector: 'drc',
  memory_init_cow: 'true',
  memory_reservation_for_growth: '2147483648',
  debug_info: 'false',
  concurrency_support: 'true',
  wasm_branch_hinting: 'false',
  wasm_compact_imports: 'false',
  wasm_component_model_accessors: 'false',
  wasm_component_model_async: 'true',
  wasm_component_model_async_stackful: 'false',
  wasm_component_model_canonical_names: 'false',
  wasm_component_model_more_async_builtins: 'false'
}
// In grpc-js' words: only the stream was cut, as a proxy does whose daemon is away, or a daemon that
// ends.
const CUT = /^Received RST_STREAM with code \d+\b(?! triggered)|^Call cancelled$|^CANCELLED$/
// In Node's words: failures of TLS that another attempt does not heal.
const LASTING = /certificate|altnames|wrong version number/
const ADDRESS = /^(unix|unix-abstract|dns|ipv4|ipv6|xds):|^[^/]+:[1-9][0-9]{0,4}$/
const LOCAL =
  /^unix(-abstract)?:|^((dns|ipv4|ipv6):(\/\/\/)?)?(localhost|127(\.\d+){3}|\[::1\]):\d+$/

// The options that exist, and what they are.
const WORDS = { boolean: 'true', number: 'a number', object: 'an object', string: 'a string' }
const SOURCE = 'a string, or an object such as a URL'
const CLIENT_OPTIONS = {
  tls: 'true, or an object',
  token: 'a string',
  tokenFile: SOURCE,
  trustedKeys: SOURCE,
  timeoutMs: 'a number',
  hostStore: 'true or false',
  maxArtifactBytes: 'a number',
}
const TLS_OPTIONS = { ca: SOURCE, key: SOURCE, cert: SOURCE, serverName: 'a string' }
const TARGET_OPTIONS = {
  engine: 'a string',
  target: 'a string',
  cpu: 'a string',
  settings: 'an object',
  compatibility: 'an object: a Uint8Array',
}
const KEY_OPTIONS = { moduleSha256: 'a string', ...TARGET_OPTIONS }
const CALL_OPTIONS = {
  ...TARGET_OPTIONS,
  timeoutMs: 'a number',
  signal: 'an object: an AbortSignal',
  background: 'true or false',
  acceptFast: 'true or false',
  skipCacheLookup: 'true or false',
  // Until 0.7: 'background' is background.
  priority: 'a string',
}

/**
 * A client of one daemon, or of several behind one address. Keep one and use it for all calls.
 *
 * Calls for code are retried until `timeoutMs` is over, so that they survive a daemon's restart:
 * docs/reference/api.md says when. A download or an upload continues where it was cut.
 */
class Client {
  #address
  #options
  #connection
  #trustedKeys
  #noFilesUntil = 0

  /** See index.d.ts for the options. Throw an Error for one that cannot be used. */
  constructor(address, options = {}) {
    known('a client', options, CLIENT_OPTIONS)
    const { tls, timeoutMs = 60_000, maxArtifactBytes = 1024 ** 3, hostStore = true } = options
    known('tls', tls || {}, TLS_OPTIONS)
    // A variable that is empty by mistake would switch verification off.
    if (options.trustedKeys === '') {
      throw new TypeError('trustedKeys names keys: leave it out to verify no signature')
    }
    if (!ADDRESS.test(address)) {
      throw new TypeError(`an address is host:port or unix:/path, not ${address}`)
    }
    const isLocal = LOCAL.test(address)
    if ((options.token ?? options.tokenFile) !== undefined && !tls && !isLocal) {
      throw new Error(`cannot send a token to ${address} in plaintext: set tls`)
    }
    this.#address = address
    this.#options = {
      ...options,
      timeoutMs: positive('timeoutMs', timeoutMs),
      maxArtifactBytes: positive('maxArtifactBytes', maxArtifactBytes),
      hostStore: hostStore && isLocal,
    }
    this.#trustedKeys = readTrustedKeys(options.trustedKeys)
    const { ca, key, cert, serverName } = tls || {}
    this.#connection = new Connection(
      address,
      tls ? credentials.createSsl(...[ca, key, cert].map(pem)) : credentials.createInsecure(),
      {
        ...(serverName && { 'grpc.ssl_target_name_override': serverName }),
        'grpc.max_receive_message_length': MAX_RECEIVED_BYTES,
        'grpc.max_send_message_length': -1,
        // After a failed connection, gRPC fails each call until it tries again.
        'grpc.initial_reconnect_backoff_ms': 100,
        'grpc.max_reconnect_backoff_ms': 1_000,
        // What goes to this machine, such as a token in plaintext, goes through no proxy.
        ...(isLocal && { 'grpc.enable_http_proxy': 0 }),
      },
    )
  }

  /**
   * Return the artifact of a module: ask by its digest, and upload it if the daemon lacks it.
   *
   * Throw a WasmkilnError, and the signal's reason if it is aborted.
   */
  async compile(module, options = {}) {
    return this.#compile(sha256(moduleBytes(module)), moduleBytes(module), options)
  }

  /** Return the artifact of a module that the daemon has. Throw ModuleNotLoaded if it has not. */
  async compileDigest(digest, options = {}) {
    if (!/^[0-9a-f]{64}$/.test(digest)) throw new TypeError('a digest is 64 lowercase hex digits')
    return this.#compile(digest, undefined, options)
  }

  /** Validate a module and store it, so that it can be compiled by its digest. */
  async load(module, options = {}) {
    const bytes = moduleBytes(module)
    const digest = sha256(bytes)
    return this.#call(options, digest, async (call) => {
      const answer = await this.#again(call, () => this.#load(digest, bytes, options.engine, call))
      if (answer.sha256 !== digest) throw new errors.UnexpectedAnswer('it is about another module')
      return { ...answer, kind: kindOf(answer) }
    })
  }

  /** Return the daemon's StatsResponse, as module_service.proto describes it. */
  async stats(options = {}) {
    return this.#call(options, '', (call) => this.#one('Stats', [{}], call))
  }

  /** Return engines, targets, settings, limits and who the caller is: GetCapabilitiesResponse. */
  async capabilities(options = {}) {
    return this.#call(options, '', (call) => this.#one('GetCapabilities', [{}], call))
  }

  /** Return the keys whose artifacts no tier has, in their order; a digest is a key. */
  async findMissing(keys, options = {}) {
    const all = keys.map((key) => (typeof key === 'string' ? { moduleSha256: key } : key))
    for (const key of all) known('a key', key, KEY_OPTIONS, null)
    return this.#call(options, '', async (call) => {
      const missing = []
      for (let at = 0; at < all.length; at += KEYS_AT_ONCE) {
        const request = { keys: all.slice(at, at + KEYS_AT_ONCE) }
        const ask = () => this.#one('FindMissing', [request], call)
        missing.push(...(await this.#again(call, ask)).missing)
      }
      return missing
    })
  }

  /** Close the connection. Running calls end with an error. */
  close() {
    this.#connection.close()
  }

  async #compile(digest, module, options) {
    const { engine = '', target = '', cpu = '', settings = {}, acceptFast, skipCacheLookup } = options
    for (const [name, value] of Object.entries(settings)) {
      if (typeof value !== 'string') throw new TypeError(`setting ${name} has to be a string`)
    }
    const section = options.compatibility && sectionOf(options.compatibility)
    const compatibility = section && Buffer.from(sha256(section), 'hex')
    const acceptHostFile = this.#options.hostStore && Date.now() >= this.#noFilesUntil
    const inlineLimitBytes = INLINE_LIMIT_BYTES
    const asked = { engine, target, cpu, settings, compatibility, inlineLimitBytes }
    Object.assign(asked, { acceptFast, skipCacheLookup })
    return this.#call(options, digest, async (call) => {
      const got = { chunks: [], size: 0 }
      const ask = async (source) => {
        try {
          return await this.#answer({ ...asked, ...source }, digest, call, got)
        } catch (error) {
          const isUnknown = error instanceof errors.CompatibilityUnknown
          if (!isUnknown || asked.compatibility === section) throw error
        }
        asked.compatibility = section
        return this.#answer({ ...asked, ...source }, digest, call, got)
      }
      let header = await this.#again(call, async () => {
        const isLarge = module?.length > UPLOAD_ABOVE_BYTES
        // Where no tier takes so large a module, it has to come with the request.
        const tries = [false, ...(isLarge ? [true] : []), undefined]
        for (const load of tries) {
          if (load) await this.#load(digest, module, engine, call)
          const source = load === undefined ? { module } : { sha256: digest }
          try {
            return await ask({ acceptHostFile, ...source })
          } catch (error) {
            const isLast = !module || load === undefined
            if (isLast || !(error instanceof errors.ModuleNotLoaded)) throw error
          }
        }
      })
      if (header.hostFile) {
        try {
          return await this.#fromFile(header)
        } catch {
          // Another machine's or another container's file, or a damaged one. The daemon has the
          // module by now.
          this.#noFilesUntil = Date.now() + NO_FILES_MS
          header = await this.#again(call, () => ask({ sha256: digest }))
        }
      }
      checkBytes(header, header.bytes)
      if (this.#trustedKeys.size) verifyAttestation(header, this.#trustedKeys)
      return new Artifact(header)
    })
  }

  /**
   * Have the daemon take a module: a large one in pieces, from where the daemon stands, if it knows
   * that, and others in one message.
   */
  async #load(digest, module, engine, call) {
    if (module.length > UPLOAD_ABOVE_BYTES) {
      try {
        const { heldBytes } = await this.#one('QueryUpload', [{ sha256: digest }], call)
        call.moved = Math.max(call.moved, heldBytes)
        const pieces = piecesOf(module, heldBytes, { sha256: digest, engine })
        return (await this.#one('Upload', pieces, call)).loaded ?? {}
      } catch (error) {
        if (error?.code !== status.UNIMPLEMENTED) throw error
      }
    }
    return this.#one('Load', [{ module, engine }], call)
  }

  /** Return the header of an answer to Compile, with the bytes unless it names a file. */
  async #answer(request, digest, call, got) {
    const { size: offsetBytes, header: before } = got
    const rest = offsetBytes ? { offsetBytes, artifactSha256: before.artifactSha256 } : {}
    // What was compiled for this call is in a tier, once its header has come.
    got.made = request.skipCacheLookup ? before?.artifactSha256 : undefined
    if (before) rest.skipCacheLookup = false
    await this.#receive({ ...request, ...rest }, digest, call, got)
    const { header, chunks } = got
    return { ...header, bytes: header.hostFile ? undefined : Buffer.concat(chunks) }
  }

  /**
   * Attempt something until it succeeds, while the call has time left and the error may pass.
   *
   * Pauses grow until more bytes than ever before have moved. Where the time ends after nobody
   * answered, throw ConnectionFailed, which says more.
   */
  async #again(call, attempt) {
    let away
    for (let [count, most] = [1, call.moved]; ; count++) {
      try {
        return await attempt()
      } catch (error) {
        if (call.moved > most) [count, most, away] = [1, call.moved, undefined]
        if (away && error instanceof errors.DeadlineExceeded) throw away
        const pauseMs = pauseAfter(error, count)
        if (pauseMs === undefined || Date.now() + pauseMs >= call.deadline) throw error
        away = error instanceof errors.ConnectionFailed ? error : undefined
        await sleep(pauseMs, undefined, { signal: call.signal }).catch(() => {})
        call.signal?.throwIfAborted()
      }
    }
  }

  /** Put into `got` the header of an answer to Compile, and its bytes behind those from before. */
  async #receive(request, digest, call, got) {
    const { maxArtifactBytes: limit } = this.#options
    let header
    for await (const message of this.#messages('Compile', [request], call)) {
      let { chunk } = message
      if (message.part === 'header') {
        check(!header, "the daemon's answer has two headers")
        header = got.header = message.header
        checkHeader(request, digest, header)
        const isOther = got.made !== undefined && got.made !== header.artifactSha256
        if (isOther && header.origin !== 'ORIGIN_COMPILED') {
          Object.assign(got, { header: undefined, chunks: [], size: 0 })
          const lost = 'the daemon has lost what it compiled for this call'
          throw new errors.ArtifactMismatch(lost, { retryAfterMs: 0 })
        }
        if (header.sizeBytes > limit) {
          throw new errors.ArtifactTooLarge(
            `the artifact has ${header.sizeBytes} bytes, above maxArtifactBytes`,
            {
              code: status.RESOURCE_EXHAUSTED,
              metadata: { size_bytes: `${header.sizeBytes}`, limit_bytes: `${limit}` },
            },
          )
        }
        if (!header.offsetBytes) Object.assign(got, { chunks: [], size: 0 })
        chunk = header.inlineArtifact
      }
      check(header, "the daemon's answer does not begin with a header")
      // Of empty ones a daemon could send any number.
      if (!chunk?.length) continue
      got.size += chunk.length
      call.moved = Math.max(call.moved, got.size)
      check(got.size <= header.sizeBytes, `more than the ${header.sizeBytes} bytes of the header`)
      got.chunks.push(chunk)
    }
    check(header, "the daemon's answer has no header")
  }

  /** Return the artifact in the file that the daemon names. Throw an error if it does not count. */
  async #fromFile(header) {
    const file = openHostFile(header)
    let taken
    try {
      // Whoever trusts the file's owner needs no digest; who gave keys asked for a signature.
      if (this.#trustedKeys.size) {
        verifyAttestation(header, this.#trustedKeys)
        const mayChangeWithoutATrace = isYoung(file)
        const bytes = await fs.promises.readFile(pathOf(file))
        checkBytes(header, bytes)
        if (mayChangeWithoutATrace) return new Artifact({ ...header, bytes })
        check(!hasChanged(file), 'the file changed while it was read')
      }
      taken = new Artifact(header, file)
      return taken
    } finally {
      if (!taken) fs.closeSync(file.descriptor)
    }
  }

  /** Run what makes the requests of one call, which share deadline, metadata and signal. */
  async #call(options, digest, run) {
    known('a call', options, CALL_OPTIONS, null)
    const { timeoutMs = this.#options.timeoutMs, signal, background, priority } = options
    // The daemon's log has it.
    const requestId = crypto.randomBytes(8).toString('hex')
    const metadata = new Metadata()
    metadata.set('x-request-id', requestId)
    if (background) metadata.set('wasmkiln-priority', 'background')
    else if (priority) metadata.set('wasmkiln-priority', priority)
    // A balancer that routes by it sends all calls about a module to the same daemon.
    if (digest) metadata.set('wasmkiln-module', digest)
    const token = this.#token()
    if (token) metadata.set('authorization', `Bearer ${token}`)
    const deadline = Date.now() + positive('timeoutMs', timeoutMs)
    try {
      return await run({ metadata, deadline, signal, timeoutMs, moved: 0 })
    } catch (error) {
      if (error instanceof errors.WasmkilnError) error.requestId = requestId
      throw error
    }
  }

  #token() {
    const { token = '', tokenFile } = this.#options
    // For each call: so a new token in the file counts at once.
    const text = (tokenFile === undefined ? token : fs.readFileSync(tokenFile, 'latin1')).trim()
    // The message does not quote the token.
    if (!/^[!-~]*$/.test(text)) throw new Error('cannot use the token: it has other characters')
    return text
  }

  async #one(method, requests, call) {
    for await (const message of this.#messages(method, requests, call)) return message
    throw new errors.UnexpectedAnswer('the daemon sent no answer')
  }

  /** Yield the messages of an answer. On the wire single messages are streams as well. */
  async *#messages(method, requests, { metadata, deadline, signal, timeoutMs }) {
    const rpc = protos['wasmkiln.v1.ModuleService'][method]
    signal?.throwIfAborted()
    const stream = this.#connection.makeBidiStreamRequest(
      ...[rpc.path, rpc.requestSerialize, rpc.responseDeserialize, metadata, { deadline }],
    )
    const cancel = () => stream.cancel()
    signal?.addEventListener('abort', cancel)
    stream.on('error', () => {}) // it comes after the end of a call that we cancel, too
    Readable.from(requests).pipe(stream)
    try {
      yield* stream
    } catch (failure) {
      throw signal?.aborted ? signal.reason : this.#error(failure, timeoutMs)
    } finally {
      signal?.removeEventListener('abort', cancel)
      cancel()
    }
  }

  /** Return the WasmkilnError for a grpc.ServiceError. */
  #error({ code, details, message: words, metadata }, timeoutMs) {
    const text = details || words
    const found = { code, ...detailsOf(metadata) }
    const Kind = Object.values(errors).find((one) => one.REASON === found.reason)
    if (found.reason) return new (Kind ?? errors.WasmkilnError)(text || found.reason, found)
    const address = this.#address
    found.metadata = { address, detail: text }
    if (code === status.UNAVAILABLE) {
      const advice = 'start one with `wasmkilnd serve`, or check the address and tls'
      // grpc-js wraps the cause in words of its own.
      const cause = text.replace(/^No connection.*?error: (Error: )?/, '').split(/\.? Resolution|\n/)[0]
      const message = `no daemon answers at ${address} (${cause}): ${advice}`
      return new errors.ConnectionFailed(message, found)
    }
    if (code === status.DEADLINE_EXCEEDED) {
      const limit = `${timeoutMs / 1000} s`
      return new errors.DeadlineExceeded(`no answer from ${address} within ${limit}`, found)
    }
    // How gRPC itself refuses a request above the server's limit, and an answer that is none.
    if (/message larger than max/i.test(text)) return new errors.ModuleTooLarge(text, found)
    if (/parsing error/.test(text)) return new errors.UnexpectedAnswer(text, found)
    return new errors.WasmkilnError(text, found)
  }
}

// Closes files whose artifact was dropped without close().
const dropped = new FinalizationRegistry((descriptor) => fs.closeSync(descriptor))

/** An artifact that is what the call asked for, and its header; see index.d.ts. */
class Artifact {
  #file
  #bytes

  /** Give it an open file of the host store, or a header with its bytes. */
  constructor({ bytes, inlineArtifact, contentEncoding, compileTime, queueTime, ...header }, file) {
    // A newer daemon's values are numbers.
    const word = (value, prefix) => `${value}`.replace(prefix, '').toLowerCase()
    const extern = (one) => ({ ...one, kind: word(one.kind, 'EXTERN_KIND_') })
    Object.assign(this, header, {
      origin: word(header.origin, 'ORIGIN_'),
      kind: kindOf(header),
      imports: header.imports.map(extern),
      exports: header.exports.map(extern),
      compileTimeMs: msOf(compileTime),
      queueTimeMs: msOf(queueTime),
      hostFile: header.hostFile?.path,
    })
    this.#bytes = bytes
    this.#file = file
    if (file) dropped.register(this, file.descriptor, this)
  }

  get path() {
    return this.#file && pathOf(this.#file)
  }

  get bytes() {
    if (this.#bytes) return this.#bytes
    if (!this.#file) throw new Error('the artifact is closed')
    const bytes = fs.readFileSync(this.path)
    checkBytes(this, bytes)
    return bytes
  }

  checkUnchanged() {
    check(!this.#file || !hasChanged(this.#file), 'the file changed after it was opened')
  }

  close() {
    if (!this.#file) return
    dropped.unregister(this)
    fs.closeSync(this.#file.descriptor)
    this.#file = undefined
  }
}

/**
 * Throw ArtifactMismatch when a header is not about what the call asked for.
 *
 * A signature cannot replace that: it binds the artifact to its header, and an attacker may answer
 * with another signed artifact.
 */
function checkHeader(request, digest, header) {
  const same = (what, asked, got) =>
    check(asked === got, `asked for ${what} ${quoted(asked)}, got ${quoted(got)}`)
  const { name, version, id } = header.engine ?? {}
  same('an artifact of module', digest, header.moduleSha256)
  same('an engine whose id is', `${name}-${version}`, id)
  if (request.engine && request.engine !== name) same('engine', request.engine, id)
  if (request.target) same('target', request.target, header.target)
  if (request.cpu) same('cpu', request.cpu, header.cpu)
  for (const [setting, value] of Object.entries(request.settings)) {
    same(`setting ${setting}`, value, header.settings[setting] ?? UNSTATED[setting])
  }
  // A setting that the call did not name has to have the engine's default, unless the host's engine
  // was shown, which compares them itself.
  const changed = Object.entries(header.changedSettings)
  const isFastChoice = ([setting, value]) => FAST[setting] === value
  const isFast = changed.some(isFastChoice)
  check(header.isFast === isFast, 'the header says something else of its compiler than its settings')
  for (const [setting, value] of request.compatibility ? [] : changed) {
    const isAccepted = request.acceptFast && isFastChoice([setting, value])
    if (!isAccepted) same(`setting ${quoted(setting)}`, request.settings[setting], value)
  }
  check(!header.contentEncoding, 'got an encoding that was not asked for')
  check(!header.hostFile || request.acceptHostFile, 'got a file that was not asked for')
  const { offsetBytes: from, artifactSha256: whole } = request
  const isRest = header.offsetBytes === from && header.artifactSha256 === whole
  check(!header.offsetBytes || isRest, 'got the rest of another artifact')
}

function checkBytes(header, bytes) {
  check(bytes.length === header.sizeBytes, `${bytes.length} of ${header.sizeBytes} bytes came`)
  const [asked, got] = [header.artifactSha256, sha256(bytes)]
  check(asked === got, `the bytes have the SHA-256 ${got}, their header says ${quoted(asked)}`)
}

/** Return how long to pause after failure 1, 2, …; undefined for an error that would come again. */
function pauseAfter(error, count) {
  if (LASTING.test(error?.metadata?.detail)) return undefined
  const isTakenOver = error instanceof errors.UploadInterrupted
  const isCut = !error?.reason && CUT.test(error?.metadata?.detail)
  const mayPass = isTakenOver || isCut || error?.code === status.UNAVAILABLE
  if (error?.retryAfterMs === undefined && !mayPass) return undefined
  const first = FIRST_PAUSE_MS * (isTakenOver ? 10 : 1)
  // Callers do not all come at the same moment.
  const pause = Math.min(LONGEST_PAUSE_MS, first * 2 ** (count - 1)) * (0.5 + Math.random() / 2)
  return pause + (error.retryAfterMs ?? 0)
}

/** Throw a TypeError for an option that does not exist, or is something else than it has to be. */
function known(what, options, kinds, none = undefined) {
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(kinds, name)) throw new TypeError(`${what} has no option ${name}`)
    const isOfKind = value !== null && kinds[name].includes(WORDS[typeof value])
    if (value !== undefined && value !== none && !isOfKind) {
      throw new TypeError(`${name} is ${kinds[name]}: leave it out for the default`)
    }
  }
}

function check(condition, message) {
  if (!condition) throw new errors.ArtifactMismatch(message)
}

/** Return a text of a daemon as one that steers no terminal. */
function quoted(text) {
  return JSON.stringify(`${text}`.slice(0, 200)).replace(/[^ -~]/g, '?')
}

/** Return what the details of a google.rpc.Status say; nothing where they are damaged. */
function detailsOf(metadata) {
  const found = {}
  try {
    const [encoded] = metadata.get('grpc-status-details-bin')
    const { details } = protos['google.rpc.Status'].deserialize(encoded)
    for (const any of details) {
      const name = any.type_url.split('/').pop()
      const detail = protos[name].deserialize(any.value)
      if (name === 'google.rpc.ErrorInfo' && detail.domain === 'wasmkiln') {
        Object.assign(found, { reason: detail.reason, metadata: detail.metadata })
      }
      if (name === 'google.rpc.RetryInfo') found.retryAfterMs = msOf(detail.retryDelay)
      if (name === 'google.rpc.BadRequest') found.fieldViolations = detail.fieldViolations
    }
  } catch {
    // None, or of another server: code and text still count.
  }
  return found
}

const msOf = (duration) => (duration ? duration.seconds * 1000 + duration.nanos / 1e6 : 0)
const kindOf = ({ kind }) => (kind === 'KIND_COMPONENT' ? 'component' : 'core')
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex')

/** Yield the requests of an Upload that begins at an offset; the first says what it is about. */
function* piecesOf(module, begin, about) {
  let said = { ...about, sizeBytes: module.length }
  for (let offset = begin; said || offset < module.length; offset += PIECE_BYTES) {
    yield { ...said, offset, data: module.subarray(offset, offset + PIECE_BYTES) }
    said = undefined
  }
}

function positive(name, number) {
  if (Number.isSafeInteger(number) && number > 0) return number
  throw new RangeError(`${name} has to be a positive whole number`)
}

/** Return PEM: the text itself, or that of the file which it names. */
function pem(source) {
  if (source === undefined) return null
  const isText = source instanceof Uint8Array || `${source}`.includes('-----BEGIN ')
  return isText ? Buffer.from(source) : fs.readFileSync(source)
}

function moduleBytes(module) {
  if (module instanceof Uint8Array) return module
  throw new TypeError("a module is a Uint8Array, such as fs.readFileSync('module.wasm')")
}

module.exports = { Artifact, Client, ...require('./errors') }
