'use strict'
// Whom a caller trusts, and whether one of them signed an artifact: DSSE envelopes with an Ed25519
// signature over an in-toto statement. docs/how-to/verify.md of wasmkiln has the format.

const crypto = require('node:crypto')
const fs = require('node:fs')
const path = require('node:path')
const { fileURLToPath } = require('node:url')
const { isDeepStrictEqual } = require('node:util')
const { AttestationInvalid } = require('./errors')

const PAYLOAD_TYPE = 'application/vnd.in-toto+json'
const KINDS = { KIND_CORE_MODULE: 'core', KIND_COMPONENT: 'component' }
// The start of every Ed25519 public key in DER (RFC 8410); the key's 32 bytes follow.
const PREFIX = Buffer.from('302a300506032b6570032100', 'hex')
const PEM = /-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----/g
const DIGEST = /^[0-9a-f]{64}$/
const EXPECTED =
  'a trusted key is 64 hex digits, base64 of 32 bytes, PEM, or a file or folder of such keys'

/**
 * Throw AttestationInvalid unless a trusted key signed exactly what the header says.
 *
 * The caller has to check that the artifact's bytes have the digest in the header.
 */
function verifyAttestation(header, trustedKeys) {
  const { payload, signer } = verifiedPayload(header.attestation, trustedKeys)
  const { name, version, coreVersion, compiler } = header.engine
  const wanted = {
    'statement type': 'https://in-toto.io/Statement/v1',
    'predicate type': 'https://slsa.dev/provenance/v1',
    'build type': 'urn:wasmkiln:compile:v1',
    artifact: [header.artifactSha256],
    module: [header.moduleSha256],
    kind: KINDS[header.kind],
    engine: { name, version, coreVersion, compiler },
    fingerprint: header.fingerprint,
    target: header.target,
    cpu: header.cpu,
    settings: header.settings,
    changedSettings: header.changedSettings,
  }
  const attested = claimsOf(payload)
  for (const [what, value] of Object.entries(wanted)) {
    if (!isDeepStrictEqual(attested[what], value)) {
      refuse('mismatch', `the attestation is about another ${what}`, signer)
    }
  }
}

/** Return an envelope's payload once a trusted key's signature over it was verified. */
function verifiedPayload(envelope, trustedKeys) {
  const sealed = parsed(envelope)
  const { keyid, sig } = sealed?.signatures?.[0] ?? {}
  if (typeof sealed?.payload !== 'string' || typeof sig !== 'string') {
    refuse('unsigned', 'the artifact has no attestation that can be read')
  }
  const signer = String(keyid)
  if (!trustedKeys.has(signer)) {
    refuse('stranger', 'the attestation is signed by a key that is not trusted', signer)
  }
  const payload = Buffer.from(sealed.payload, 'base64')
  // The bytes that DSSE signs: type and payload with their lengths. The type is always ours.
  const start = `DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `
  const signed = Buffer.concat([Buffer.from(start), payload])
  if (!crypto.verify(null, signed, trustedKeys.get(signer), Buffer.from(sig, 'base64'))) {
    refuse('mismatch', "the attestation's signature is not by the key that it names", signer)
  }
  return { payload, signer }
}

/** Return what a statement says of an artifact, as far as it says so. */
function claimsOf(payload) {
  const digests = (list) => Array.isArray(list) && list.map((one) => one?.digest?.sha256)
  const statement = parsed(payload) ?? {}
  const made = statement.predicate?.buildDefinition ?? {}
  return {
    ...made.externalParameters,
    'statement type': statement._type,
    'predicate type': statement.predicateType,
    'build type': made.buildType,
    artifact: digests(statement.subject),
    module: digests(made.resolvedDependencies),
  }
}

function parsed(bytes) {
  try {
    return JSON.parse(bytes.toString())
  } catch {
    return undefined
  }
}

function refuse(cause, why, signer) {
  throw new AttestationInvalid(why, { metadata: { cause, ...(signer && { key_id: signer }) } })
}

/**
 * Return the keys that count, by their ids, the SHA-256 of each key's 32 bytes in hex.
 *
 * A source is a key (hex, base64, PEM, 32 bytes, a KeyObject), a file with PEM blocks or one key a
 * line, or a folder of `*.pem` files. With a folder, the ids in `revoked/` do not count; it is in
 * the folder or, where that is called `trusted`, beside it. Throw an Error for anything else.
 */
function readTrustedKeys(sources) {
  const keys = new Map()
  const revoked = new Set()
  if (sources === undefined || sources === null) return keys
  for (const key of [sources].flat().flatMap((source) => keysOf(source, revoked))) {
    if (key.asymmetricKeyType !== 'ed25519' || key.type !== 'public') throw new Error(EXPECTED)
    const raw = key.export({ format: 'der', type: 'spki' }).subarray(PREFIX.length)
    keys.set(crypto.createHash('sha256').update(raw).digest('hex'), key)
  }
  for (const id of revoked) keys.delete(id)
  // With no key nothing would be checked, and a caller who passes a list wants a check.
  if (keys.size === 0) throw new Error('trustedKeys has no key that counts')
  return keys
}

function keysOf(source, revoked) {
  if (source instanceof crypto.KeyObject) return [source]
  if (source instanceof Uint8Array && source.length === 32) return [ofRaw(source)]
  if (typeof source === 'string' && (source.includes('-----BEGIN ') || ofLine(source))) {
    return ofText(source)
  }
  // An error does not quote what it was given: it may be a private key, pasted by mistake.
  if (typeof source !== 'string' && !(source instanceof URL)) throw new TypeError(EXPECTED)
  if (!fs.existsSync(source)) throw new Error(EXPECTED)
  const place = path.resolve(source instanceof URL ? fileURLToPath(source) : source)
  if (!fs.statSync(place).isDirectory()) return ofText(fs.readFileSync(place, 'latin1'))
  const above = path.basename(place) === 'trusted' ? [path.dirname(place)] : []
  for (const folder of [place, ...above]) {
    for (const text of textsIn(path.join(folder, 'revoked'), '.json')) {
      const id = parsed(text)?.key_id
      if (!DIGEST.test(id)) throw new Error(`a file in ${folder}/revoked names no key as key_id`)
      revoked.add(id)
    }
  }
  return textsIn(place, '.pem').flatMap(ofText)
}

function textsIn(folder, end) {
  const names = fs.existsSync(folder) ? fs.readdirSync(folder) : []
  const wanted = names.filter((name) => name.endsWith(end))
  return wanted.map((name) => fs.readFileSync(path.join(folder, name), 'latin1'))
}

function ofText(text) {
  const lines = text.split('\n').filter((line) => line.trim() && !line.startsWith('#'))
  const keys = text.match(PEM)?.map((block) => crypto.createPublicKey(block)) ?? lines.map(ofLine)
  if (keys.length === 0 || keys.includes(undefined)) throw new Error(EXPECTED)
  return keys
}

/** Return the key of a line in hex or base64; undefined where it is none. */
function ofLine(line) {
  const text = line.trim()
  if (/^[0-9a-f]{64}$/i.test(text)) return ofRaw(Buffer.from(text, 'hex'))
  return /^[A-Za-z0-9+/]{43}=$/.test(text) ? ofRaw(Buffer.from(text, 'base64')) : undefined
}

function ofRaw(raw) {
  return crypto.createPublicKey({ key: Buffer.concat([PREFIX, raw]), format: 'der', type: 'spki' })
}

module.exports = { readTrustedKeys, verifyAttestation }
