'use strict'
// The public keys that a caller trusts.

const crypto = require('node:crypto')
const fs = require('node:fs')

// The start of every Ed25519 public key in DER (RFC 8410); the key's 32 bytes follow.
const PREFIX = Buffer.from('302a300506032b6570032100', 'hex')
const PEM = /-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----/g
const EXPECTED = 'expected an Ed25519 public key: 64 hex digits, base64 of 32 bytes, or PEM'

/**
 * Return the keys by their ids, the SHA-256 of each key's 32 bytes in hex.
 *
 * A source is the path of a file with PEM blocks or one key a line, a key as text (hex, base64 or
 * PEM), the 32 bytes, or a KeyObject. Throw an Error for anything else.
 */
function readTrustedKeys(sources) {
  const keys = new Map()
  if (sources === undefined || sources === null) return keys
  for (const source of Array.isArray(sources) ? sources : [sources]) {
    for (const raw of rawKeys(source)) {
      const der = Buffer.concat([PREFIX, raw])
      const id = crypto.createHash('sha256').update(raw).digest('hex')
      keys.set(id, crypto.createPublicKey({ key: der, format: 'der', type: 'spki' }))
    }
  }
  if (keys.size === 0) {
    // With no key nothing would be checked, and a caller who passes a list wants a check.
    throw new Error('trustedKeys has no key in it: leave it out to check nothing')
  }
  return keys
}

function rawKeys(source) {
  if (source instanceof crypto.KeyObject) return [ofKeyObject(source)]
  if (source instanceof Uint8Array && source.length === 32) return [Buffer.from(source)]
  if (source instanceof Uint8Array) return ofText(Buffer.from(source).toString('latin1'))
  if (typeof source !== 'string' && !(source instanceof URL)) throw new TypeError(EXPECTED)
  if (typeof source === 'string' && (source.includes('\n') || ofLine(source))) return ofText(source)
  let text
  try {
    text = fs.readFileSync(source, 'latin1')
  } catch (error) {
    // The message does not quote the text: it may be a private key, pasted by mistake.
    throw new Error(`cannot read trusted keys (${error.code}): ${EXPECTED}, or a file of such keys`)
  }
  try {
    return ofText(text)
  } catch {
    throw new Error(`cannot read the trusted keys in ${source}: ${EXPECTED}`)
  }
}

function ofText(text) {
  const blocks = text.match(PEM)
  if (blocks) return blocks.map((block) => ofKeyObject(crypto.createPublicKey(block)))
  const lines = text.split('\n').map((line) => line.trim())
  const keys = lines.filter((line) => line && !line.startsWith('#')).map(ofLine)
  if (keys.length === 0 || keys.includes(undefined)) throw new Error(EXPECTED)
  return keys
}

/** Return the key of a line in hex or base64; undefined where it is none. */
function ofLine(line) {
  const text = line.trim()
  if (/^[0-9a-f]{64}$/i.test(text)) return Buffer.from(text, 'hex')
  const raw = Buffer.from(text, 'base64')
  return raw.length === 32 && raw.toString('base64') === text ? raw : undefined
}

function ofKeyObject(key) {
  if (key.asymmetricKeyType !== 'ed25519' || key.type === 'private') throw new Error(EXPECTED)
  return key.export({ format: 'der', type: 'spki' }).subarray(PREFIX.length)
}

module.exports = { readTrustedKeys }
