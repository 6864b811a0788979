'use strict'

const crypto = require('node:crypto')
const fs = require('node:fs')
const { Artifact, checkedFile } = require('./artifact')
const { Assembly } = require('./assembly')
const { verifyAttestation } = require('./attestation')
const { Calls } = require('./calls')
const { AttestationInvalid, ModuleNotLoaded, UnexpectedAnswer, WasmkilnError } = require('./errors')
const { isLocal } = require('./channel')
const { Refused, openHostFile } = require('./host-file')
const { plain } = require('./protos')
const { readTrustedKeys } = require('./trusted-keys')

// A daemon puts no larger artifact into its header's message.
const INLINE_LIMIT_BYTES = 65_536
const DEFAULT_MAX_ARTIFACT_BYTES = 1024 ** 3
// How long the client asks for bytes after it could not use a file.
const NO_FILES_MS = 60_000
const DIGEST = /^[0-9a-f]{64}$/

/**
 * A client of one daemon, or of several behind one address. Keep one and use it for all calls.
 *
 * It does not retry: an error says in `retryAfterMs` when to try again. A call is made twice in
 * two cases only: the daemon lacks the module, or this process cannot open a file of the daemon's.
 */
class Client {
  #calls
  #trustedKeys
  #hostStore
  #maxArtifactBytes
  #noFilesUntil = 0

  /** See index.d.ts for the options. Throw an Error for one that cannot be used. */
  constructor(address, options = {}) {
    this.#trustedKeys = readTrustedKeys(options.trustedKeys)
    this.#maxArtifactBytes = options.maxArtifactBytes ?? DEFAULT_MAX_ARTIFACT_BYTES
    if (!Number.isSafeInteger(this.#maxArtifactBytes) || this.#maxArtifactBytes <= 0) {
      throw new RangeError('maxArtifactBytes has to be a positive whole number')
    }
    this.#calls = new Calls(address, options)
    this.#hostStore = options.hostStore !== false && isLocal(address)
  }

  /**
   * Return the artifact of a module: ask by its digest, and upload it if the daemon lacks it.
   *
   * Throw a WasmkilnError, and the signal's reason if it is aborted.
   */
  async compile(module, options = {}) {
    const bytes = moduleBytes(module)
    const moduleSha256 = crypto.createHash('sha256').update(bytes).digest('hex')
    const call = this.#calls.begin(options, moduleSha256)
    const asked = { moduleSha256, module: bytes }
    try {
      return await this.#compile(asked, { sha256: moduleSha256 }, options, call)
    } catch (error) {
      if (!(error instanceof ModuleNotLoaded)) throw error
    }
    return this.#compile(asked, { module: bytes }, options, call)
  }

  /** Return the artifact of a module that the daemon has. Throw ModuleNotLoaded if it has not. */
  async compileDigest(moduleSha256, options = {}) {
    if (!DIGEST.test(moduleSha256)) {
      throw new TypeError('a digest is 64 lowercase hexadecimal digits')
    }
    const call = this.#calls.begin(options, moduleSha256)
    return this.#compile({ moduleSha256 }, { sha256: moduleSha256 }, options, call)
  }

  /** Validate a module and store it, so that it can be compiled by its digest. */
  async load(module, options = {}) {
    const bytes = moduleBytes(module)
    const sha256 = crypto.createHash('sha256').update(bytes).digest('hex')
    const { engine = '', expectedSha256 = '' } = options
    const request = { module: bytes, engine, expectedSha256 }
    const answer = await this.#unary('Load', request, options, sha256)
    if (answer.sha256 !== sha256 || answer.sizeBytes !== bytes.length) {
      throw new UnexpectedAnswer('the daemon answered about another module')
    }
    return { ...answer, kind: answer.kind === 'KIND_COMPONENT' ? 'component' : 'core' }
  }

  /** Return the daemon's StatsResponse, as module_service.proto describes it. */
  async stats(options = {}) {
    return this.#unary('Stats', {}, options)
  }

  /** Return engines, targets, settings, limits and who the caller is: GetCapabilitiesResponse. */
  async capabilities(options = {}) {
    return this.#unary('GetCapabilities', {}, options)
  }

  /** Close the connection. Running calls end with an error. */
  close() {
    this.#calls.close()
  }

  async #unary(method, request, options, moduleSha256) {
    const call = this.#calls.begin(options, moduleSha256)
    return plain(await this.#calls.unary(method, request, call), Number)
  }

  async #compile(asked, source, options, call) {
    const acceptHostFile = this.#hostStore && Date.now() >= this.#noFilesUntil
    const request = { ...source, ...compileOptions(options), acceptHostFile }
    try {
      const answer = await this.#artifact({ ...asked, request }, call)
      if (!answer.header.hostFile) return this.#fromBytes(answer)
      const artifact = await this.#fromFile(answer.header)
      if (artifact) return artifact
      // The daemon has the module by now.
      const byDigest = { module: undefined, sha256: asked.moduleSha256 }
      const again = { ...request, ...byDigest, acceptHostFile: false }
      return this.#fromBytes(await this.#artifact({ ...asked, request: again }, call))
    } catch (error) {
      if (error instanceof WasmkilnError) error.requestId ||= call.requestId
      throw error
    }
  }

  #fromBytes({ header, bytes }) {
    if (this.#trustedKeys.size) verifyAttestation(header, this.#trustedKeys)
    return new Artifact(header, { bytes })
  }

  async #artifact(asked, call) {
    const assembly = new Assembly(asked, this.#maxArtifactBytes)
    await this.#calls.stream('Compile', asked.request, call, (message) => assembly.add(message))
    return assembly.finish()
  }

  /** Return the artifact in the file that the daemon names; undefined where it does not count. */
  async #fromFile(header) {
    let file
    try {
      file = openHostFile(header)
      if (!this.#trustedKeys.size) return new Artifact(header, { file })
      verifyAttestation(header, this.#trustedKeys)
      return new Artifact(header, await checkedFile(header, file))
    } catch (error) {
      if (file) fs.closeSync(file.descriptor)
      const isOfFile = error instanceof Refused || error.syscall !== undefined
      if (!isOfFile && !(error instanceof AttestationInvalid)) throw error
      // Another machine's or another container's file, or a damaged one.
      this.#noFilesUntil = Date.now() + NO_FILES_MS
      return undefined
    }
  }
}

function compileOptions({ engine = '', target = '', cpu = '', settings = {}, skipCacheLookup }) {
  for (const [name, value] of Object.entries(settings)) {
    if (typeof value !== 'string') {
      throw new TypeError(`the value of setting '${name}' has to be a string, such as 'true'`)
    }
  }
  return {
    ...{ engine, target, cpu, settings: { ...settings } },
    skipCacheLookup: Boolean(skipCacheLookup),
    inlineLimitBytes: INLINE_LIMIT_BYTES,
  }
}

function moduleBytes(module) {
  if (module instanceof ArrayBuffer) return Buffer.from(module)
  if (module instanceof Uint8Array) return module
  throw new TypeError("a module is a Uint8Array, such as fs.readFileSync('module.wasm')")
}

module.exports = { Client }
