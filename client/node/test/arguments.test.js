'use strict'
// What callers may give, and what they read where it cannot be used.

const assert = require('node:assert/strict')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { test } = require('node:test')
const crypto = require('node:crypto')
const wasmkiln = require('..')
const { readTrustedKeys } = require('../lib/trusted-keys')
const { Signer, sha256 } = require('./fake-daemon')

const { Client } = wasmkiln

test('an import has what a require has', async () => {
  const imported = await import('../lib/index.mjs')
  assert.deepEqual(Object.keys(imported).sort(), Object.keys(wasmkiln).sort())
  assert.equal(imported.Client, Client)
})

test('a trusted key in each form', (t) => {
  const { raw, pem } = new Signer()
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'keys-')), 'key')
  t.after(() => fs.rmSync(path.dirname(file), { recursive: true }))
  fs.writeFileSync(file, `# comment\n${raw.toString('hex')}\n`)
  const pemFile = `${file}.pem`
  fs.writeFileSync(pemFile, pem + new Signer().pem)
  const key = crypto.createPublicKey(pem)
  const forms = [raw, raw.toString('hex'), raw.toString('base64'), pem, Buffer.from(pem), file, pemFile, key]
  for (const form of forms) assert.ok(readTrustedKeys(form).has(sha256(raw)))
  assert.equal(readTrustedKeys([file, pemFile]).size, 2)
  assert.equal(readTrustedKeys(undefined).size, 0)
})

test('what is no trusted key, and is not shown', () => {
  const { privateKey } = crypto.generateKeyPairSync('ed25519')
  const secret = privateKey.export({ format: 'pem', type: 'pkcs8' })
  const rsa = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey
  const other = rsa.export({ format: 'pem', type: 'spki' })
  for (const wrong of [[], '/no/such/file', 'abc', secret, other, rsa, privateKey, 7, os.tmpdir()]) {
    assert.throws(() => readTrustedKeys(wrong), (error) => !error.message.includes('PRIVATE'))
  }
})

test('addresses', () => {
  for (const wrong of ['localhost', 'http://localhost:1', 'localhost:0', 'localhost:70000', '', 7]) {
    assert.throws(() => new Client(wrong), /address/)
  }
  for (const right of ['localhost:1', 'unix:/a', 'dns:///a:1', 'ipv4:127.0.0.1:1,127.0.0.1:2', '[::1]:1']) {
    new Client(right).close()
  }
})

test('arguments that cannot be used', async () => {
  const wrong = { timeoutMs: 0, maxArtifactBytes: 1.5, token: 'two words', trustedKeys: [] }
  for (const [name, value] of Object.entries(wrong)) {
    assert.throws(() => new Client('localhost:1', { [name]: value }), Error, name)
  }
  assert.throws(() => new Client('localhost:1', { token: 'a', tokenFile: 'b' }), /not both/)
  assert.throws(() => new Client('localhost:1', { tls: { cert: 'a' } }), /go together/)
  assert.throws(() => new Client('example.org:1', { token: 'a' }), /in plaintext/)
  new Client('example.org:1', { token: 'a', tls: true }).close()
  const kiln = new Client('localhost:1')
  await assert.rejects(kiln.compile('module.wasm'), /readFileSync/)
  await assert.rejects(kiln.compile(Buffer.alloc(8), { settings: { a: true } }), /has to be a string/)
  await assert.rejects(kiln.compile(Buffer.alloc(8), { priority: 'high' }), /priority/)
  await assert.rejects(kiln.compileDigest('abc'), /64 lowercase/)
  kiln.close()
})

test('nobody listens', async () => {
  // The port of a server that has ended.
  const server = require('node:net').createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => server.on('listening', resolve))
  const address = `127.0.0.1:${server.address().port}`
  await new Promise((resolve) => server.close(resolve))
  for (const [where, cause] of [[address, 'connection refused'], ['unix:/no/such.sock', 'no such socket']]) {
    const kiln = new Client(where)
    await assert.rejects(kiln.stats(), (error) => {
      assert.ok(error instanceof wasmkiln.ConnectionFailed, error.stack)
      assert.equal(error.metadata.address, where)
      const start = `no daemon answers at ${where} (${cause}): `
      return error.message.startsWith(start) || assert.fail(error.message)
    })
    kiln.close()
  }
})
