'use strict'
// What a compile returns: the artifact, as bytes or as an open file, and its header.

const crypto = require('node:crypto')
const fs = require('node:fs')
const { checkDigest } = require('./assembly')
const { Refused, checkUnchanged, isRacy } = require('./host-file')

const READ_BYTES = 1024 * 1024
const EXTERN = (kind) => kind.replace('EXTERN_KIND_', '').toLowerCase()

// Closes files whose artifact was dropped without close().
const dropped = new FinalizationRegistry((descriptor) => fs.closeSync(descriptor))

/** An artifact, whose every field was compared with the call, and its header. */
class Artifact {
  #file
  #bytes

  /** Give it its bytes, or an open file of the host store. */
  constructor(header, { bytes, file }) {
    this.moduleSha256 = header.moduleSha256
    this.artifactSha256 = header.artifactSha256
    this.sizeBytes = header.sizeBytes
    this.engine = header.engine
    this.target = header.target
    this.cpu = header.cpu
    /** Every setting of the engine with the value in force. */
    this.settings = header.settings
    /** The settings that a host has to apply to load the artifact. */
    this.changedSettings = header.changedSettings
    this.fingerprint = header.fingerprint
    /** 'compiled', 'memory', 'host_store', 'redis' or 'joined_flight'. */
    this.origin = header.origin.replace('ORIGIN_', '').toLowerCase()
    /** 'core' or 'component'. */
    this.kind = header.kind === 'KIND_COMPONENT' ? 'component' : 'core'
    this.imports = header.imports.map((one) => ({ ...one, kind: EXTERN(one.kind) }))
    this.exports = header.exports.map((one) => ({ ...one, kind: EXTERN(one.kind) }))
    this.compileTimeMs = ms(header.compileTime)
    this.queueTimeMs = ms(header.queueTime)
    /** The DSSE envelope; empty where the daemon does not sign. */
    this.attestation = header.attestation
    /** The file in the host store, to show it; undefined where the daemon sent bytes. */
    this.hostFile = header.hostFile?.path
    this.#bytes = bytes
    if (file) {
      this.#file = file
      dropped.register(this, file.descriptor, this)
    }
  }

  /**
   * What to give to an engine that maps files: a path that leads to the descriptor which was
   * checked, until close(). Undefined where there are bytes only.
   */
  get path() {
    return this.#file && `/proc/self/fd/${this.#file.descriptor}`
  }

  /** The artifact's bytes, read from the file at first use where there is one. */
  get bytes() {
    if (!this.#bytes) {
      if (!this.#file) throw new Error('the artifact is closed')
      this.#bytes = readAll(this.#file)
      checkDigest(this, crypto.createHash('sha256').update(this.#bytes).digest('hex'))
    }
    return this.#bytes
  }

  /** Throw unless the file is as it was when it was opened. Call it after an engine mapped it. */
  checkUnchanged() {
    if (this.#file) checkUnchanged(this.#file)
  }

  /** Close the file. An engine keeps what it has mapped. May be called twice. */
  close() {
    if (this.#file) {
      dropped.unregister(this)
      fs.closeSync(this.#file.descriptor)
      this.#file = undefined
    }
  }
}

/**
 * Return what of an open file an Artifact may have once its digest was checked: the file, or its
 * bytes where the file is so young that it may change without a trace. Throw Refused.
 */
async function checkedFile(header, file) {
  if (isRacy(file)) {
    const bytes = readAll(file)
    compare(header, crypto.createHash('sha256').update(bytes))
    fs.closeSync(file.descriptor)
    return { bytes }
  }
  const digest = crypto.createHash('sha256')
  const buffer = Buffer.allocUnsafe(READ_BYTES)
  for (let position = 0; position < header.sizeBytes; ) {
    const read = await new Promise((resolve, reject) => {
      const done = (error, count) => (error ? reject(new Refused(error.message)) : resolve(count))
      fs.read(file.descriptor, buffer, 0, READ_BYTES, position, done)
    })
    if (read === 0) break
    digest.update(buffer.subarray(0, read))
    position += read
  }
  compare(header, digest)
  checkUnchanged(file)
  return { file }
}

function compare(header, digest) {
  if (digest.digest('hex') !== header.artifactSha256) {
    throw new Refused("the file's bytes are not those of its header")
  }
}

function readAll({ descriptor, status }) {
  const bytes = Buffer.allocUnsafe(Number(status.size))
  let done = 0
  while (done < bytes.length) {
    const read = fs.readSync(descriptor, bytes, done, bytes.length - done, done)
    if (read === 0) throw new Refused('a file changed while it was read')
    done += read
  }
  return bytes
}

function ms(duration) {
  return duration ? Number(duration.seconds) * 1000 + duration.nanos / 1e6 : 0
}

module.exports = { Artifact, checkedFile }
