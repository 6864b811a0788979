'use strict'

const crypto = require('node:crypto')
const fs = require('node:fs')
const { Artifact, checkedFile } = require('./artifact')
const { Assembly } = require('./assembly')
const { verifyAttestation } = require('./attestation')
const { Calls } = require('./calls')
const { AttestationInvalid, ModuleNotLoaded, UnexpectedAnswer } = require('./errors')
const { isLocal } = require('./channel')
const { Refused, openHostFile } = require('./host-file')
const { plain } = require('./protos')
const { readTrustedKeys } = require('./trusted-keys')

// A daemon puts no larger artifact into its header's message.
const INLINE_LIMIT_BYTES = 65_536
const DEFAULT_MAX_ARTIFACT_BYTES = 1024 ** 3
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
    const call = this.#calls.begin(options)
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
    const call = this.#calls.begin(options)
    return this.#compile({ moduleSha256 }, { sha256: moduleSha256 }, options, call)
  }

  /** Validate a module and store it, so that it can be compiled by its digest. */
  async load(module, options = {}) {
    const bytes = moduleBytes(module)
    const { engine = '', expectedSha256 = '' } = options
    const request = { module: bytes, engine, expectedSha256 }
    const answer = await this.#unary('Load', request, options)
    const sha256 = crypto.createHash('sha256').update(bytes).digest('hex')
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

  async #unary(method, request, options) {
    return plain(await this.#calls.unary(method, request, this.#calls.begin(options)), Number)
  }

  async #compile(asked, source, options, call) {
    const request = { ...source, ...compileOptions(options), acceptHostFile: this.#hostStore }
    let answer = await this.#artifact({ ...asked, request }, call)
    if (answer.header.hostFile) {
      try {
        return await this.#fromFile(answer.header)
      } catch (error) {
        if (!(error instanceof Refused || error instanceof AttestationInvalid)) throw error
      }
      // Another machine's or another container's file, or a damaged one.
      request.acceptHostFile = false
      answer = await this.#artifact({ ...asked, request }, call)
    }
    if (this.#trustedKeys.size) verifyAttestation(answer.header, this.#trustedKeys)
    return new Artifact(answer.header, { bytes: answer.bytes })
  }

  async #artifact(asked, call) {
    const assembly = new Assembly(asked, this.#maxArtifactBytes)
    await this.#calls.stream('Compile', asked.request, call, (message) => assembly.add(message))
    return assembly.finish()
  }

  async #fromFile(header) {
    const file = openHostFile(header)
    let content = { file }
    try {
      if (this.#trustedKeys.size) {
        verifyAttestation(header, this.#trustedKeys)
        content = await checkedFile(header, file)
      }
    } catch (error) {
      fs.closeSync(file.descriptor)
      throw error
    }
    return new Artifact(header, content)
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
