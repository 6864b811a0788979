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
// Of an Ed25519 public key, at the end of its DER.
const KEY_BYTES = 32
const PEM = /-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----/g
const EXPECTED =
  'a trusted key is an Ed25519 public key in PEM, or a file or folder of such keys'

/**
 * Throw AttestationInvalid unless a trusted key signed exactly what the header says.
 *
 * The caller has to check that the artifact's bytes have the digest in the header.
 */
function verifyAttestation(header, trustedKeys) {
  const envelope = parsed(header.attestation)
  const { keyid: signer, sig } = envelope?.signatures?.[0] ?? {}
  if ([envelope?.payload, signer, sig].some((text) => typeof text !== 'string')) {
    refuse('unsigned', 'the artifact has no attestation that can be read')
  }
  if (!trustedKeys.has(signer)) {
    refuse('stranger', 'the attestation is signed by a key that is not trusted', signer)
  }
  const payload = Buffer.from(envelope.payload, 'base64')
  // The bytes that DSSE signs: type and payload with their lengths. The type is always ours.
  const start = `DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `
  const signed = Buffer.concat([Buffer.from(start), payload])
  if (!crypto.verify(null, signed, trustedKeys.get(signer), Buffer.from(sig, 'base64'))) {
    refuse('mismatch', "the attestation's signature is not by the key that it names", signer)
  }
  const statement = parsed(payload)
  const made = statement?.predicate?.buildDefinition
  const given = made?.externalParameters
  const digests = (list) => Array.isArray(list) && list.map((one) => one?.digest?.sha256)
  const { name, version, coreVersion, compiler } = header.engine
  const claims = {
    'statement type': [statement?._type, 'https://in-toto.io/Statement/v1'],
    'predicate type': [statement?.predicateType, 'https://slsa.dev/provenance/v1'],
    'build type': [made?.buildType, 'urn:wasmkiln:compile:v1'],
    artifact: [digests(statement?.subject), [header.artifactSha256]],
    module: [digests(made?.resolvedDependencies), [header.moduleSha256]],
    kind: [given?.kind, KINDS[header.kind]],
    engine: [given?.engine, { name, version, coreVersion, compiler }],
  }
  for (const same of ['fingerprint', 'target', 'cpu', 'settings', 'changedSettings']) {
    claims[same] = [given?.[same], header[same]]
  }
  for (const [what, [said, due]] of Object.entries(claims)) {
    if (!isDeepStrictEqual(said, due)) {
      refuse('mismatch', `the attestation is about another ${what}`, signer)
    }
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
 * A source is PEM, a file of it, or a folder of `*.pem` files. With a folder, the ids in `revoked/`
 * do not count; it is in the folder or, where that is called `trusted`, beside it. Throw an Error
 * for anything else.
 */
function readTrustedKeys(sources) {
  const keys = new Map()
  const revoked = new Set()
  if (sources === undefined || sources === null) return keys
  for (const key of [sources].flat().flatMap((source) => keysOf(source, revoked))) {
    if (key.asymmetricKeyType !== 'ed25519') throw new Error(EXPECTED)
    const raw = key.export({ format: 'der', type: 'spki' }).subarray(-KEY_BYTES)
    keys.set(crypto.createHash('sha256').update(raw).digest('hex'), key)
  }
  for (const id of revoked) keys.delete(id)
  // With no key nothing would be checked, and a caller who passes a list wants a check.
  if (keys.size === 0) throw new Error('trustedKeys has no key that counts')
  return keys
}

function keysOf(source, revoked) {
  const found = typeof source === 'string' ? inText(source) : []
  if (found.length) return found
  // An error does not quote what it was given: it may be a private key, pasted by mistake.
  if (!fs.existsSync(source)) {
    throw new Error(/^[^\n]+\.pem$/.test(source) ? `there is no file ${source}` : EXPECTED)
  }
  const place = path.resolve(source instanceof URL ? fileURLToPath(source) : source)
  const isFolder = fs.statSync(place).isDirectory()
  const above = isFolder && path.basename(place) === 'trusted' ? [path.dirname(place)] : []
  for (const folder of isFolder ? [place, ...above] : []) {
    for (const text of textsIn(path.join(folder, 'revoked'), '.json')) {
      const id = parsed(text)?.key_id
      if (!/^[0-9a-f]{64}$/.test(id)) {
        throw new Error(`a file in ${folder}/revoked names no key as key_id`)
      }
      revoked.add(id)
    }
  }
  const texts = isFolder ? textsIn(place, '.pem') : [fs.readFileSync(place, 'latin1')]
  const keys = texts.map(inText)
  if (keys.some((each) => each.length === 0)) throw new Error(EXPECTED)
  return keys.flat()
}

function textsIn(folder, end) {
  const names = fs.existsSync(folder) ? fs.readdirSync(folder) : []
  const wanted = names.filter((name) => name.endsWith(end))
  return wanted.map((name) => fs.readFileSync(path.join(folder, name), 'latin1'))
}

function inText(text) {
  return (text.match(PEM) ?? []).map((block) => crypto.createPublicKey(block))
}

module.exports = { readTrustedKeys, verifyAttestation }
