'use strict'
// Attestations: DSSE envelopes with one Ed25519 signature over an in-toto statement.
// docs/reference/attestation.md of wasmkiln describes the format.

const crypto = require('node:crypto')
const { AttestationInvalid } = require('./errors')

const PAYLOAD_TYPE = 'application/vnd.in-toto+json'
const STATEMENT_TYPE = 'https://in-toto.io/Statement/v1'
const PREDICATE_TYPE = 'https://slsa.dev/provenance/v1'
const BUILD_TYPE = 'urn:wasmkiln:compile:v1'
const MALFORMED = 'cannot read the attestation: it is not a DSSE envelope as wasmkiln writes it'

/**
 * Throw AttestationInvalid unless a trusted key signed exactly what the header says.
 *
 * The caller has to check that the artifact's bytes have the digest in the header.
 */
function verifyAttestation(header, trustedKeys) {
  const { payload, keyId } = verifiedPayload(header.attestation, trustedKeys)
  const attested = claimsOfPayload(payload, keyId)
  for (const [name, value] of Object.entries(claimsOfHeader(header))) {
    if (!isEqual(attested[name], value)) {
      refuse('mismatch', `the attestation is about another ${name}`, keyId)
    }
  }
}

/** Return the payload's bytes once a trusted key's signature over them was verified. */
function verifiedPayload(envelope, trustedKeys) {
  if (!envelope || envelope.length === 0) refuse('unsigned', 'the artifact has no attestation')
  const { payload, payloadType, keyid, sig } = parsed(envelope)
  const key = trustedKeys.get(keyid)
  if (!key) {
    const why = `the attestation is signed by a key that is not trusted: ${keyid}`
    refuse('stranger', why, keyid)
  }
  if (payloadType !== PAYLOAD_TYPE) {
    refuse('mismatch', "the attestation's payload is of another type", keyid)
  }
  // The bytes that DSSE signs: type and payload with their lengths.
  const start = `DSSEv1 ${payloadType.length} ${payloadType} ${payload.length} `
  if (!crypto.verify(null, Buffer.concat([Buffer.from(start), payload]), key, sig)) {
    refuse('mismatch', "the attestation's signature is not by the key that it names", keyid)
  }
  return { payload, keyId: keyid }
}

/** Return the parts of an envelope that is, byte for byte, as wasmkiln writes it. */
function parsed(envelope) {
  try {
    const { payload, payloadType, signatures } = JSON.parse(envelope.toString('utf8'))
    const [{ keyid, sig }] = signatures
    // The signature does not cover the envelope's own fields: take none that were added.
    const canonical = JSON.stringify({ payload, payloadType, signatures: [{ keyid, sig }] })
    if (canonical === envelope.toString('utf8') && /^[0-9a-f]{64}$/.test(keyid)) {
      const parts = { payload: Buffer.from(payload, 'base64'), sig: Buffer.from(sig, 'base64') }
      if (parts.payload.toString('base64') === payload && parts.sig.toString('base64') === sig) {
        return { ...parts, payloadType, keyid }
      }
    }
  } catch {
    // Not JSON, or without one of the fields.
  }
  return refuse('unsigned', MALFORMED)
}

function claimsOfPayload(payload, keyId) {
  try {
    const statement = JSON.parse(payload.toString('utf8'))
    const { buildDefinition } = statement.predicate
    const types = [statement._type, statement.predicateType, buildDefinition.buildType]
    const [subject, ...others] = statement.subject
    const [module, ...more] = buildDefinition.resolvedDependencies
    if (
      isEqual(types, [STATEMENT_TYPE, PREDICATE_TYPE, BUILD_TYPE]) &&
      others.length === 0 &&
      more.length === 0
    ) {
      const given = buildDefinition.externalParameters
      return {
        'artifact sha256': subject.digest.sha256,
        'module sha256': module.digest.sha256,
        fingerprint: given.fingerprint,
        kind: given.kind,
        engine: given.engine,
        target: given.target,
        cpu: given.cpu,
        settings: given.settings,
        'changed settings': given.changedSettings,
      }
    }
  } catch {
    // Without one of the fields.
  }
  return refuse('mismatch', "the attestation's statement is not about an artifact", keyId)
}

function claimsOfHeader(header) {
  const { name, version, coreVersion, compiler } = header.engine
  return {
    'artifact sha256': header.artifactSha256,
    'module sha256': header.moduleSha256,
    fingerprint: header.fingerprint,
    kind: { KIND_CORE_MODULE: 'core', KIND_COMPONENT: 'component' }[header.kind] ?? '',
    engine: { name, version, coreVersion, compiler },
    target: header.target,
    cpu: header.cpu,
    settings: header.settings,
    'changed settings': header.changedSettings,
  }
}

/** Return whether two texts, or lists or objects of texts, are the same. */
function isEqual(one, other) {
  if (typeof one !== 'object' || typeof other !== 'object' || !one || !other) return one === other
  const names = Object.keys(one)
  return (
    names.length === Object.keys(other).length &&
    names.every((name) => Object.hasOwn(other, name) && one[name] === other[name])
  )
}

function refuse(cause, why, keyId) {
  throw new AttestationInvalid(why, { metadata: { cause, ...(keyId && { key_id: keyId }) } })
}

module.exports = { verifyAttestation }
