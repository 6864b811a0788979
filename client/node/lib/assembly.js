'use strict'
// Puts an artifact together from the messages of a Compile stream, and verifies it.

const crypto = require('node:crypto')
const { ArtifactMismatch, ArtifactTooLarge } = require('./errors')
const { checkHeader } = require('./header-checks')
const { plain } = require('./protos')
const { quoted } = require('./untrusted')

// A newer daemon may send parts that this client does not know, but not endlessly.
const MAX_EMPTY_MESSAGES = 100

/** The artifact of one Compile stream: `add` each message, then `finish`. */
class Assembly {
  #asked
  #maxBytes
  #header
  #chunks = []
  #receivedBytes = 0
  #emptyMessages = 0
  #refused = ''
  #digest = crypto.createHash('sha256')

  constructor(asked, maxBytes) {
    this.#asked = asked
    this.#maxBytes = maxBytes
  }

  /** Take the next message. Throw when it contradicts the call or the header. */
  add(message) {
    if (message.part === 'header') {
      this.#begin(plain(message.header, String))
    } else if (message.chunk?.length) {
      this.#append(message.chunk)
    } else if (++this.#emptyMessages > MAX_EMPTY_MESSAGES) {
      throw new ArtifactMismatch('the daemon sent too many empty messages')
    }
  }

  /** Return { header, bytes }; without bytes where the header names a file. */
  finish() {
    const header = this.#header
    if (!header) throw new ArtifactMismatch("the daemon's answer ended without a header")
    if (header.hostFile) return { header }
    if (this.#receivedBytes !== header.sizeBytes) {
      const { sizeBytes } = header
      throw new ArtifactMismatch(
        `the artifact ended after ${this.#receivedBytes} of ${sizeBytes} bytes`,
      )
    }
    checkDigest(header, this.#digest.digest('hex'))
    const [only] = this.#chunks
    return { header, bytes: this.#chunks.length === 1 ? only : Buffer.concat(this.#chunks) }
  }

  #begin(header) {
    if (this.#header) throw new ArtifactMismatch("the daemon's answer has two headers")
    if (!header.engine) throw new ArtifactMismatch('the header names no engine')
    header.sizeBytes = Number(header.sizeBytes)
    checkHeader(this.#asked, header)
    if (header.sizeBytes > this.#maxBytes) {
      throw new ArtifactTooLarge(
        `the artifact has ${header.sizeBytes} bytes, above this client's limit of` +
          ` ${this.#maxBytes}: raise maxArtifactBytes`,
        { metadata: { size_bytes: `${header.sizeBytes}`, limit_bytes: `${this.#maxBytes}` } },
      )
    }
    const inline = header.inlineArtifact
    // It says how the bytes came; what the caller gets is the artifact itself.
    header.inlineArtifact = Buffer.alloc(0)
    this.#header = header
    if (header.hostFile) this.#refused = 'the daemon named a file and sent bytes too'
    if (inline.length) {
      this.#append(inline)
      this.#refused = 'the artifact is in its header, and more bytes follow'
    }
  }

  #append(chunk) {
    if (!this.#header) throw new ArtifactMismatch("the daemon's answer has bytes before its header")
    if (this.#refused) throw new ArtifactMismatch(this.#refused)
    this.#receivedBytes += chunk.length
    if (this.#receivedBytes > this.#header.sizeBytes) {
      const { sizeBytes } = this.#header
      throw new ArtifactMismatch(`the artifact is longer than the ${sizeBytes} bytes of its header`)
    }
    this.#digest.update(chunk)
    this.#chunks.push(chunk)
  }
}

/** Throw ArtifactMismatch unless the artifact has the digest that its header says. */
function checkDigest(header, actual) {
  if (actual !== header.artifactSha256) {
    const expected = quoted(header.artifactSha256)
    throw new ArtifactMismatch(
      `the artifact's bytes have the SHA-256 ${actual}, its header says ${expected || 'none'}`,
      { metadata: { expected_sha256: expected, actual_sha256: actual } },
    )
  }
}

module.exports = { Assembly, checkDigest }
