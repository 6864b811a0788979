'use strict'
// Against a real daemon, which WASMKILN_TEST names: {address, socket, key, module, large}.

const assert = require('node:assert/strict')
const fs = require('node:fs')
const path = require('node:path')
const { after, before, test } = require('node:test')
const { execFileSync } = require('node:child_process')
const wasmkiln = require('..')
const { Signer, sha256 } = require('./fake-daemon')

const given = process.env.WASMKILN_TEST && JSON.parse(process.env.WASMKILN_TEST)
const skip = given ? false : 'WASMKILN_TEST names no daemon: tests/e2e/test_node_client.py does'
const engine = 'wasmtime'
let wasm, kiln, remote

before(() => {
  if (skip) return
  wasm = fs.readFileSync(given.module)
  kiln = new wasmkiln.Client(given.address, { trustedKeys: given.key })
  // As from another machine.
  remote = new wasmkiln.Client(given.address, { trustedKeys: given.key, hostStore: false })
})
after(() => {
  kiln?.close()
  remote?.close()
})

test('a module is compiled, and then it is there', { skip }, async () => {
  await assert.rejects(remote.compileDigest(sha256(wasm), { engine }), wasmkiln.ModuleNotLoaded)
  const made = await remote.compile(wasm, { engine, settings: { consume_fuel: 'true' } })
  assert.equal(made.origin, 'compiled')
  assert.equal(made.moduleSha256, sha256(wasm))
  assert.equal(made.artifactSha256, sha256(made.bytes))
  assert.equal(made.engine.name, 'wasmtime')
  assert.deepEqual(made.changedSettings, { consume_fuel: 'true' })
  assert.equal(made.exports[0].kind, 'function')
  assert.ok(made.compileTimeMs > 0)
  const again = await remote.compileDigest(sha256(wasm), { engine, settings: { consume_fuel: 'true' } })
  assert.equal(again.origin, 'memory')
  assert.deepEqual(again.bytes, made.bytes)
})

test('an artifact of many chunks, and of one in its header', { skip }, async () => {
  for (const [file, limit] of [[given.large, 1024 * 1024], [given.module, 0]]) {
    const artifact = await remote.compile(fs.readFileSync(file), { engine })
    assert.ok(artifact.sizeBytes > limit)
    assert.equal(artifact.bytes.length, artifact.sizeBytes)
  }
})

test('a file of the host store', { skip }, async () => {
  const artifact = await kiln.compile(wasm, { engine })
  assert.equal(path.basename(artifact.hostFile), 'artifact')
  assert.equal(artifact.artifactSha256, sha256(artifact.bytes))
  artifact.close()
})

test('a Unix socket', { skip }, async () => {
  const near = new wasmkiln.Client(given.socket)
  assert.equal((await near.capabilities()).caller.namespace, '')
  assert.ok((await near.compile(wasm, { engine })).hostFile)
  near.close()
})

test('load, stats, capabilities', { skip }, async () => {
  const loaded = await kiln.load(wasm, { engine, expectedSha256: sha256(wasm) })
  assert.deepEqual(
    [loaded.sha256, loaded.sizeBytes, loaded.kind],
    [sha256(wasm), wasm.length, 'core'],
  )
  const stats = await kiln.stats()
  assert.ok(stats.tiers.some((tier) => tier.tier === 'memory' && typeof tier.hits === 'number'))
  const capabilities = await kiln.capabilities()
  assert.ok(capabilities.engines.some((one) => one.engine.id.startsWith('wasmtime-')))
  assert.equal(typeof capabilities.limits.moduleBytes, 'number')
})

const ERRORS = {
  ModuleInvalid: () => [Buffer.from('0061736d010000007f', 'hex'), { engine }],
  NotWasm: () => [Buffer.from('(module)'), { engine }],
  EngineUnknown: () => [wasm, { engine: 'wasmtime-1.2.3' }],
  TargetUnsupported: () => [wasm, { engine, target: 'z80-none' }],
  SettingUnknown: () => [wasm, { engine, settings: { colour: 'red' } }],
}
for (const [name, call] of Object.entries(ERRORS)) {
  test(`the daemon refuses: ${name}`, { skip }, async () => {
    await assert.rejects(kiln.compile(...call()), (error) => {
      assert.ok(error instanceof wasmkiln[name], error.stack)
      assert.equal(error.reason, wasmkiln[name].REASON)
      return error.message.length > 10
    })
  })
}

test('another digest, and a digest that nobody loaded', { skip }, async () => {
  const expectedSha256 = '0'.repeat(64)
  await assert.rejects(kiln.load(wasm, { engine, expectedSha256 }), (error) => {
    assert.equal(error.metadata.expected_sha256, expectedSha256)
    return error instanceof wasmkiln.DigestMismatch
  })
  await assert.rejects(kiln.compileDigest(expectedSha256), wasmkiln.ModuleNotLoaded)
})

test('a daemon whose key is not trusted', { skip }, async () => {
  for (const hostStore of [true, false]) {
    const strict = new wasmkiln.Client(given.address, { trustedKeys: new Signer().raw, hostStore })
    await assert.rejects(strict.compile(wasm, { engine }), (error) => {
      assert.equal(error.metadata.cause, 'stranger')
      return error instanceof wasmkiln.AttestationInvalid
    })
    strict.close()
  }
})

test('the example', { skip }, () => {
  const example = path.join(__dirname, '..', 'examples', 'compile.js')
  const words = [example, given.address, given.module, '--key', given.key]
  const lines = execFileSync(process.execPath, words, { encoding: 'utf8' }).trim().split('\n')
  assert.equal(lines.length, 3)
  const compiled = `^node compiled sha256:${sha256(wasm)} with wasmtime-[0-9.]+, [0-9]+ bytes, from `
  assert.match(lines[0], new RegExp(compiled))
  assert.match(lines[1], new RegExp(`${compiled}(memory, as a file of the host store|host_store)$`))
  assert.match(lines[2], /^node error MODULE_INVALID: /)
})
