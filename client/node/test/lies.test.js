'use strict'
// What the client does with answers that are not true.

const assert = require('node:assert/strict')
const { after, before, test } = require('node:test')
const { status } = require('@grpc/grpc-js')
const wasmkiln = require('..')
const { FakeDaemon, MODULE, Signer, headerOf, refusal, sha256 } = require('./fake-daemon')

const ARTIFACT = Buffer.from('native code, a little of it')
const signer = new Signer()
const stranger = new Signer()
const daemon = new FakeDaemon()
let kiln

before(async () => {
  await daemon.start()
  const options = { trustedKeys: signer.pem, hostStore: false, maxArtifactBytes: 1000 }
  kiln = new wasmkiln.Client(daemon.address, options)
})
after(() => {
  kiln.close()
  daemon.stop()
})

const whole = (header, bytes = ARTIFACT) => [{ header }, { chunk: bytes }]
const honest = (changes) => headerOf(ARTIFACT, signer, changes)

test('the truth, in each form', async () => {
  const forms = [
    whole(honest()),
    [{ header: honest() }, { chunk: ARTIFACT.subarray(0, 5) }, {}, { chunk: ARTIFACT.subarray(5) }],
    [{ header: { ...honest(), inlineArtifact: ARTIFACT } }],
  ]
  for (const form of forms) {
    daemon.answer = () => form
    const artifact = await kiln.compile(MODULE, { engine: 'wasmtime', settings: { consume_fuel: 'false' } })
    assert.deepEqual(artifact.bytes, ARTIFACT)
    assert.equal(artifact.artifactSha256, sha256(ARTIFACT))
    assert.equal(artifact.origin, 'compiled')
    assert.equal(artifact.path, undefined)
  }
})

const OTHER = '0'.repeat(64)
const MISMATCHES = {
  'other bytes': () => whole(honest(), Buffer.from(ARTIFACT).fill(0)),
  'too few bytes': () => whole(honest(), ARTIFACT.subarray(1)),
  'too many bytes': () => [...whole(honest()), { chunk: ARTIFACT }],
  'no header': () => [{ chunk: ARTIFACT }],
  'nothing': () => [],
  'two headers': () => [{ header: honest() }, ...whole(honest())],
  'empty messages without end': () => [{ header: honest() }, ...Array(200).fill({})],
  'bytes after inline ones': () => [{ header: { ...honest(), inlineArtifact: ARTIFACT } }, { chunk: ARTIFACT }],
  'a file that was not asked for': () => [{ header: honest({ hostFile: { path: '/a', device: 1, inode: 2 } }) }],
  'another encoding': () => whole({ ...honest(), contentEncoding: 'zstd' }),
  'another module': () => whole(honest({ moduleSha256: OTHER })),
  'another engine': () => whole(honest({ engine: { id: 'wasmer-1.1.0', name: 'wasmer', version: '1.1.0' } })),
  'an id that is another': () => whole({ ...honest(), engine: { ...honest().engine, id: 'wasmtime-49.0.0' } }),
  'another target': () => whole(honest({ target: 'aarch64-unknown-linux-gnu' })),
  'another cpu': () => whole(honest({ cpu: 'baseline' })),
  'another setting': () => whole(honest({ settings: { consume_fuel: 'true' } })),
  'a setting that was not asked for': () => whole(honest({ changedSettings: { debug: 'true' } })),
  'another kind': () => whole(honest({ kind: 'KIND_COMPONENT' })),
  'fast code': () => whole({ ...honest(), isFast: true }),
}
const asked = {
  engine: 'wasmtime',
  target: 'x86_64-unknown-linux-gnu',
  cpu: 'x86-64-v3',
  settings: { consume_fuel: 'false' },
}
for (const [name, answer] of Object.entries(MISMATCHES)) {
  test(`a mismatch: ${name}`, async () => {
    daemon.answer = answer
    await assert.rejects(kiln.compile(MODULE, asked), (error) => {
      assert.ok(error instanceof wasmkiln.ArtifactMismatch, error.stack)
      assert.match(error.requestId, /^[0-9a-f]{16}$/)
      return error.reason === 'ARTIFACT_MISMATCH'
    })
  })
}

const about = (change) => (header) => ({ ...header, attestation: signer.sign(header, change) })
const parameters = (statement) => statement.predicate.buildDefinition.externalParameters
const UNTRUSTED = {
  'no attestation': ['unsigned', (header) => ({ ...header, attestation: Buffer.alloc(0) })],
  'no envelope': ['unsigned', (header) => ({ ...header, attestation: Buffer.from('{}') })],
  'a field more': ['unsigned', (header) => edited(header, (one) => ({ ...one, more: 1 }))],
  'two signatures': ['unsigned', (header) => edited(header, (one) => twice(one))],
  'white space': ['unsigned', (header) => ({ ...header, attestation: Buffer.concat([header.attestation, Buffer.from(' ')]) })],
  'another key': ['stranger', (header) => ({ ...header, attestation: stranger.sign(header) })],
  'a forged key id': ['mismatch', (header) => forged(header)],
  'another payload type': ['mismatch', (header) => ({ ...header, attestation: signer.envelope(Buffer.from('{}'), 'text/plain') })],
  'no statement': ['mismatch', (header) => ({ ...header, attestation: signer.envelope(Buffer.from('[]'), 'application/vnd.in-toto+json') })],
  'another artifact': ['mismatch', about((one) => (one.subject[0].digest.sha256 = OTHER))],
  'two subjects': ['mismatch', about((one) => one.subject.push(one.subject[0]))],
  'another predicate': ['mismatch', about((one) => (one.predicateType = 'x'))],
  'another module': ['mismatch', about((one) => (one.predicate.buildDefinition.resolvedDependencies[0].digest.sha256 = OTHER))],
  ...Object.fromEntries(
    ['fingerprint', 'kind', 'target', 'cpu'].map((field) => [
      `another ${field}`,
      ['mismatch', about((one) => (parameters(one)[field] = 'x'))],
    ]),
  ),
  'another engine': ['mismatch', about((one) => (parameters(one).engine.coreVersion = '49'))],
  'another setting': ['mismatch', about((one) => (parameters(one).settings.consume_fuel = 'true'))],
  'a setting more': ['mismatch', about((one) => (parameters(one).settings.__proto = 'true'))],
  'a setting changed': ['mismatch', about((one) => (parameters(one).changedSettings.debug = 'true'))],
}
for (const [name, [cause, lie]] of Object.entries(UNTRUSTED)) {
  test(`an attestation that does not count: ${name}`, async () => {
    daemon.answer = () => whole(lie(honest()))
    await assert.rejects(kiln.compile(MODULE), (error) => {
      assert.ok(error instanceof wasmkiln.AttestationInvalid, error.stack)
      assert.equal(error.metadata.cause, cause)
      return error.reason === 'ATTESTATION_INVALID'
    })
  })
}

function edited(header, change) {
  const envelope = JSON.parse(header.attestation)
  return { ...header, attestation: Buffer.from(JSON.stringify(change(envelope))) }
}

function twice(envelope) {
  return { ...envelope, signatures: [...envelope.signatures, ...envelope.signatures] }
}

function forged(header) {
  const mine = JSON.parse(stranger.sign(header))
  mine.signatures[0].keyid = sha256(signer.raw)
  return { ...header, attestation: Buffer.from(JSON.stringify(mine)) }
}

test('without trusted keys, digests alone count', async () => {
  daemon.answer = () => whole({ ...honest(), attestation: Buffer.alloc(0) })
  const trusting = new wasmkiln.Client(daemon.address, { hostStore: false })
  assert.deepEqual((await trusting.compile(MODULE)).bytes, ARTIFACT)
  daemon.answer = () => whole(honest(), Buffer.from(ARTIFACT).fill(0))
  await assert.rejects(trusting.compile(MODULE), wasmkiln.ArtifactMismatch)
  trusting.close()
})

test('an artifact above the limit', async () => {
  daemon.answer = () => [{ header: honest({ sizeBytes: 1001 }) }]
  await assert.rejects(kiln.compile(MODULE), {
    name: 'ArtifactTooLarge',
    metadata: { size_bytes: '1001', limit_bytes: '1000' },
  })
})

test('bytes that are no message', async () => {
  daemon.answer = () => [Buffer.from('ffffffffff', 'hex')]
  await assert.rejects(kiln.compile(MODULE), { reason: 'UNEXPECTED_ANSWER' })
})

test('an error is decoded, in all of its details', async () => {
  daemon.answer = () => {
    const details = { metadata: { limit: 'queue' }, retryAfter: { seconds: 2, nanos: 5e8 }, field: 'engine' }
    throw refusal(status.RESOURCE_EXHAUSTED, 'COMPILE_QUEUE_FULL', details)
  }
  await assert.rejects(kiln.compileDigest(OTHER), (error) => {
    assert.ok(error instanceof wasmkiln.QueueFull)
    assert.ok(error instanceof wasmkiln.WasmkilnError)
    assert.equal(error.code, status.RESOURCE_EXHAUSTED)
    assert.equal(error.retryAfterMs, 2500)
    assert.deepEqual(error.metadata, { limit: 'queue' })
    assert.deepEqual(error.fieldViolations, [{ field: 'engine', description: 'no' }])
    assert.match(error.requestId, /^[0-9a-f]{16}$/)
    return error.message === 'cannot'
  })
})

test('a reason of a newer daemon, and details that are damaged', async () => {
  daemon.answer = () => {
    throw refusal(status.ABORTED, 'MOON_IS_FULL')
  }
  await assert.rejects(kiln.compile(MODULE), { name: 'WasmkilnError', reason: 'MOON_IS_FULL' })
  daemon.answer = () => {
    const error = refusal(status.ABORTED, 'MOON_IS_FULL')
    error.metadata.set('grpc-status-details-bin', Buffer.from('ffff', 'hex'))
    throw error
  }
  await assert.rejects(kiln.compile(MODULE), { reason: '', code: status.ABORTED })
})

test('a module goes up once, if the daemon lacks it', async () => {
  daemon.requests.length = 0
  daemon.answer = (request) => {
    if (!request.module) throw refusal(status.NOT_FOUND, 'MODULE_NOT_LOADED')
    return whole(honest())
  }
  await kiln.compile(MODULE)
  assert.deepEqual(daemon.requests.map((one) => one.sha256 ?? one.module), [sha256(MODULE), MODULE])
  await assert.rejects(kiln.compileDigest(sha256(MODULE)), wasmkiln.ModuleNotLoaded)
  assert.equal(daemon.requests.length, 3)
})

test('priority and token are sent', async () => {
  let metadata
  daemon.answer = (_, call) => {
    metadata = call.metadata
    return whole(honest())
  }
  const ours = new wasmkiln.Client(daemon.address, { token: 'wk_one' })
  await ours.compile(MODULE, { priority: 'background' })
  assert.deepEqual(metadata.get('wasmkiln-priority'), ['background'])
  assert.deepEqual(metadata.get('authorization'), ['Bearer wk_one'])
  assert.deepEqual(metadata.get('wasmkiln-module'), [sha256(MODULE)])
  ours.close()
})

test('a signal ends a call', async () => {
  let ended
  daemon.answer = (_, call) => {
    ended = new Promise((resolve) => call.on('cancelled', resolve))
    call.end = () => {} // and never answers
    return []
  }
  const controller = new AbortController()
  const running = kiln.compile(MODULE, { signal: controller.signal })
  while (!ended) await new Promise((resolve) => setTimeout(resolve, 5))
  controller.abort()
  await assert.rejects(running, { name: 'AbortError' })
  await ended
  await assert.rejects(kiln.compile(MODULE, { signal: controller.signal }), { name: 'AbortError' })
})

test('a deadline ends a call', async () => {
  daemon.answer = (_, call) => {
    call.end = () => {}
    return []
  }
  await assert.rejects(kiln.compile(MODULE, { timeoutMs: 50 }), {
    reason: 'DEADLINE_EXCEEDED',
    message: `no answer from ${daemon.address} within 0.05 s`,
  })
})
