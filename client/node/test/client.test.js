'use strict'
// Arguments, and how the package is imported. What it does with a daemon, and with one that lies:
// tests/polyglot of the repository.

const assert = require('node:assert/strict')
const { test } = require('node:test')
const wasmkiln = require('..')

const { Client } = wasmkiln
const LOCAL = 'localhost:1'

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
    assert.throws(() => new Client(LOCAL, wrong), Error)
  }
  for (const wrong of [[], 7, 'no/file', '00'.repeat(32), `${'A'.repeat(43)}=`]) {
    assert.throws(() => new Client(LOCAL, { trustedKeys: wrong }), /trusted ?[kK]ey/)
  }
  assert.throws(() => new Client(LOCAL, { trustedKeys: 'no.pem' }), /there is no file no\.pem/)
  for (const unknown of [{ trustedkeys: 'a' }, { trustedKey: 'a' }, { tsl: true }]) {
    assert.throws(() => new Client(LOCAL, unknown), /a client has no option (trusted[kK]eys?|tsl)/)
  }
  for (const nothing of [null, '', 0]) {
    assert.throws(() => new Client(LOCAL, { trustedKeys: nothing }), /leave it out/)
  }
  assert.throws(() => new Client(LOCAL, { tls: { cafile: 'a' } }), /tls has no option cafile/)
  assert.throws(() => new Client(LOCAL, { tls: 'yes' }), /tls is true, or an object/)
  assert.throws(() => new Client(LOCAL, { hostStore: 'no' }), /hostStore is true or false/)
  const types = { token: 7, tokenFile: 7, timeoutMs: '7', maxArtifactBytes: '7', trustedKeys: 7, tls: 1 }
  for (const [name, wrong] of Object.entries(types)) {
    for (const value of [wrong, null]) {
      assert.throws(() => new Client(LOCAL, { [name]: value }), new RegExp(`${name} (is|names) `))
    }
  }
  assert.throws(() => new Client(LOCAL, { tls: { serverName: 7 } }), /serverName is a string/)
  // A machine of that name, and no socket.
  assert.throws(() => new Client('unixprod:50051', { token: 'a' }), /in plaintext/)
  const kiln = new Client(LOCAL)
  await assert.rejects(kiln.compile(Buffer.of(), { egine: 'wasmtime' }), /no option egine/)
  await assert.rejects(kiln.compile(Buffer.of(), { acceptFast: 'no' }), /acceptFast is true or false/)
  await assert.rejects(kiln.compile(Buffer.of(), { engine: 7 }), /engine is a string/)
  await assert.rejects(kiln.findMissing([{ sha256: '0' }]), /a key has no option sha256/)
  await assert.rejects(kiln.compile('module.wasm'), /readFileSync/)
  await assert.rejects(kiln.compile(Buffer.of(), { settings: { a: true } }), /has to be a string/)
  await assert.rejects(kiln.compileDigest('abc'), /64 lowercase/)
  kiln.close()
})

test('a call for code is tried until its deadline, others once', async () => {
  const kiln = new Client(LOCAL, { timeoutMs: 700 })
  const began = Date.now()
  await assert.rejects(kiln.stats(), wasmkiln.ConnectionFailed)
  const once = Date.now() - began
  await assert.rejects(kiln.compile(Buffer.of()), wasmkiln.ConnectionFailed)
  // Two pauses and a third that would be too long: nothing here is measured but that it pauses.
  assert.ok(Date.now() - began - once >= 150)
  const signal = AbortSignal.timeout(50)
  await assert.rejects(kiln.compile(Buffer.of(), { signal, timeoutMs: 60_000 }), /timeout/)
  kiln.close()
})

test('an import has what a require has', async () => {
  const imported = await import('../lib/index.js')
  for (const name of Object.keys(wasmkiln)) assert.equal(imported[name], wasmkiln[name], name)
})
