'use strict'
// The client against a server that answers as a test says. What all clients do with a real daemon,
// and with one that lies about a header, a signature, bytes or a file: tests/polyglot/test_node.py.

const assert = require('node:assert/strict')
const crypto = require('node:crypto')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { after, before, test } = require('node:test')
const grpc = require('@grpc/grpc-js')
const wasmkiln = require('..')
const { readTrustedKeys } = require('../lib/attestation')
const protos = require('../lib/protos')

const { Client } = wasmkiln
const { Compile } = protos['wasmkiln.v1.ModuleService']
const MODULE = Buffer.from('0061736d01000000', 'hex')
const ARTIFACT = Buffer.from('native code, a little of it')
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex')
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'node-'))
const server = new grpc.Server()
process.umask(0o022)
let address, answer, kiln, requests

const HEADER = {
  engine: { id: 'wasmtime-50.0.1', name: 'wasmtime', version: '50.0.1' },
  fingerprint: 'f'.repeat(64),
  moduleSha256: sha256(MODULE),
  artifactSha256: sha256(ARTIFACT),
  sizeBytes: ARTIFACT.length,
  origin: 'ORIGIN_COMPILED',
}
const whole = (changes, chunk = ARTIFACT) => [{ header: { ...HEADER, ...changes } }, { chunk }]

/** Return an error as daemons send it. */
function refusal(code, reason) {
  const details = Object.entries({
    'google.rpc.ErrorInfo': { reason, domain: 'wasmkiln', metadata: { limit: 'queue' } },
    'google.rpc.RetryInfo': { retryDelay: { seconds: 2, nanos: 5e8 } },
    'google.rpc.BadRequest': { fieldViolations: [{ field: 'engine', description: 'no' }] },
  }).map(([name, one]) => ({ type_url: `a/${name}`, value: protos[name].serialize(one) }))
  const trailers = new grpc.Metadata()
  const encoded = protos['google.rpc.Status'].serialize({ code, message: 'cannot', details })
  trailers.set('grpc-status-details-bin', encoded)
  return Object.assign(new Error('cannot'), { code, details: 'cannot', metadata: trailers })
}

before(async () => {
  // A test may send bytes that are no message.
  const responseSerialize = (one) => (Buffer.isBuffer(one) ? one : Compile.responseSerialize(one))
  const served = (call) => {
    requests.push(call.request)
    try {
      for (const message of answer(call.request, call)) call.write(message)
      call.end()
    } catch (error) {
      call.emit('error', error)
    }
  }
  server.addService({ Compile: { ...Compile, responseSerialize } }, { Compile: served })
  const bound = require('node:util').promisify(server.bindAsync.bind(server))
  address = `127.0.0.1:${await bound('127.0.0.1:0', grpc.ServerCredentials.createInsecure())}`
  requests = []
  kiln = new Client(address, { hostStore: false, maxArtifactBytes: 1000, token: 'wk_one' })
})
after(() => {
  kiln.close()
  server.forceShutdown()
  fs.rmSync(folder, { recursive: true })
})

test('the truth, uploaded once, with who asks and for what', async () => {
  let metadata
  answer = (request, call) => {
    metadata = call.metadata
    if (!request.module) throw refusal(grpc.status.NOT_FOUND, 'MODULE_NOT_LOADED')
    const [first, second] = whole({ inlineArtifact: ARTIFACT.subarray(0, 5) }, ARTIFACT.subarray(5))
    return [first, {}, second]
  }
  const artifact = await kiln.compile(MODULE, { engine: 'wasmtime', priority: 'background' })
  assert.deepEqual(artifact.bytes, ARTIFACT)
  assert.deepEqual([artifact.origin, artifact.path], ['compiled', undefined])
  assert.deepEqual(requests.map((one) => one.sha256 ?? one.module), [sha256(MODULE), MODULE])
  const said = ['authorization', 'wasmkiln-priority', 'wasmkiln-module']
  const values = said.flatMap((name) => metadata.get(name))
  assert.deepEqual(values, ['Bearer wk_one', 'background', sha256(MODULE)])
  await assert.rejects(kiln.compileDigest(sha256(MODULE)), wasmkiln.ModuleNotLoaded)
})

const LIES = {
  'other bytes': ['ArtifactMismatch', () => whole({}, Buffer.alloc(ARTIFACT.length))],
  'too few bytes': ['ArtifactMismatch', () => whole({}, ARTIFACT.subarray(1))],
  'another module': ['ArtifactMismatch', () => whole({ moduleSha256: '0'.repeat(64) })],
  'a file': ['ArtifactMismatch', () => whole({ hostFile: { path: '/a' } })],
  'too large': ['ArtifactTooLarge', () => whole({ sizeBytes: 1001 })],
  'no message': ['UnexpectedAnswer', () => [Buffer.from('ffffffffff', 'hex')]],
}
for (const [lie, [name, said]] of Object.entries(LIES)) {
  test(`a lie: ${lie}`, async () => {
    answer = said
    await assert.rejects(kiln.compile(MODULE), (error) => {
      assert.ok(error instanceof wasmkiln[name], error.stack)
      assert.ok(error instanceof wasmkiln.WasmkilnError)
      return /^[0-9a-f]{16}$/.test(error.requestId)
    })
  })
}

test('an error is decoded, also that of a newer daemon', async () => {
  const names = { COMPILE_QUEUE_FULL: 'QueueFull', MOON_IS_FULL: 'WasmkilnError' }
  for (const [reason, name] of Object.entries(names)) {
    answer = () => {
      throw refusal(grpc.status.RESOURCE_EXHAUSTED, reason)
    }
    const fieldViolations = [{ field: 'engine', description: 'no' }]
    const found = { retryAfterMs: 2500, metadata: { limit: 'queue' }, fieldViolations }
    const expected = { name, reason, code: 8, message: 'cannot', ...found }
    await assert.rejects(kiln.compile(MODULE), expected)
  }
})

test('a signal or a deadline ends a call', async () => {
  let ended
  answer = (_, call) => {
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
  const message = `no answer from ${address} within 0.05 s`
  const late = kiln.compile(MODULE, { timeoutMs: 50 })
  await assert.rejects(late, { reason: 'DEADLINE_EXCEEDED', message })
})

test('a file is taken, and what is written to it noticed', async () => {
  const names = [HEADER.fingerprint, sha256(MODULE).slice(0, 2), sha256(MODULE), 'artifact']
  const file = path.join(folder, ...names)
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.writeFileSync(file, ARTIFACT)
  fs.utimesSync(file, 1, 1)
  const { dev: device, ino: inode } = fs.statSync(file)
  answer = ({ acceptHostFile }) =>
    acceptHostFile ? whole({ hostFile: { path: file, device, inode } }).slice(0, 1) : whole()
  const near = new Client(address)
  const artifact = await near.compile(MODULE)
  assert.deepEqual(fs.readFileSync(artifact.path), ARTIFACT)
  assert.deepEqual(artifact.bytes, ARTIFACT)
  artifact.checkUnchanged()
  fs.writeFileSync(file, Buffer.alloc(ARTIFACT.length))
  assert.throws(() => artifact.checkUnchanged(), wasmkiln.ArtifactMismatch)
  assert.throws(() => artifact.bytes, wasmkiln.ArtifactMismatch)
  for (let time = 0; time < 2; time++) artifact.close()
  assert.equal(artifact.path, undefined)
  // A file that does not count: for a minute the client asks for bytes at once.
  fs.chmodSync(file, 0o666)
  const open = fs.readdirSync('/proc/self/fd').length
  requests = []
  for (let time = 0; time < 2; time++) {
    assert.deepEqual((await near.compile(MODULE)).bytes, ARTIFACT)
  }
  assert.deepEqual(requests.map((one) => one.acceptHostFile), [true, false, false])
  assert.equal(fs.readdirSync('/proc/self/fd').length, open)
  near.close()
})

test('trusted keys in each form, less those that are revoked', () => {
  const { publicKey, privateKey } = crypto.generateKeyPairSync('ed25519')
  const other = crypto.generateKeyPairSync('ed25519').publicKey
  const raw = publicKey.export({ format: 'der', type: 'spki' }).subarray(12)
  const pem = publicKey.export({ format: 'pem', type: 'spki' })
  const [file, trusted] = [path.join(folder, 'key'), path.join(folder, 'trusted')]
  fs.writeFileSync(file, `# comment\n${raw.toString('hex')}\n`)
  for (const form of [raw, raw.toString('hex'), raw.toString('base64'), pem, publicKey, file]) {
    assert.deepEqual([...readTrustedKeys(form).keys()], [sha256(raw)])
  }
  fs.mkdirSync(trusted)
  fs.writeFileSync(path.join(trusted, 'one.pem'), pem)
  fs.writeFileSync(path.join(trusted, 'two.pem'), other.export({ format: 'pem', type: 'spki' }))
  assert.equal(readTrustedKeys(trusted).size, 2)
  fs.mkdirSync(path.join(folder, 'revoked'))
  const revocation = path.join(folder, 'revoked', `${sha256(raw)}.json`)
  fs.writeFileSync(revocation, JSON.stringify({ key_id: sha256(raw), since_ms: 0 }))
  assert.equal(readTrustedKeys([trusted, raw]).has(sha256(raw)), false)
  assert.throws(() => readTrustedKeys(path.join(folder, 'trusted', 'none')), /a trusted key is/)
  fs.writeFileSync(revocation, '{}')
  assert.throws(() => readTrustedKeys(trusted), /names no key/)
  const secret = privateKey.export({ format: 'pem', type: 'pkcs8' })
  for (const wrong of [[], 'abc', secret, privateKey, 7]) {
    assert.throws(() => readTrustedKeys(wrong), (error) => !error.message.includes('PRIVATE'))
  }
})

test('arguments of no use', async () => {
  for (const wrong of ['localhost', 'http://localhost:1', 'localhost:0', '', 7]) {
    assert.throws(() => new Client(wrong), /an address is/)
  }
  for (const right of ['localhost:1', 'unix:/a', 'dns:///a:1', 'ipv4:127.0.0.1:1', '[::1]:1']) {
    new Client(right).close()
  }
  for (const remote of ['a.org:1', '127.0.0.1.a.org:1', 'ipv4:127.0.0.1:1,10.0.0.1:1']) {
    assert.throws(() => new Client(remote, { token: 'a' }), /in plaintext/)
  }
  new Client('example.org:1', { token: 'a', tls: true }).close()
  for (const wrong of [{ timeoutMs: 0 }, { maxArtifactBytes: 1.5 }, { tls: { cert: 'no/file' } }]) {
    assert.throws(() => new Client('localhost:1', wrong), Error)
  }
  await assert.rejects(kiln.compile('module.wasm'), /readFileSync/)
  await assert.rejects(kiln.compile(MODULE, { settings: { a: true } }), /has to be a string/)
  await assert.rejects(kiln.compileDigest('abc'), /64 lowercase/)
})

test('an import has what a require has', async () => {
  const imported = await import('../lib/index.js')
  for (const name of Object.keys(wasmkiln)) assert.equal(imported[name], wasmkiln[name], name)
})
