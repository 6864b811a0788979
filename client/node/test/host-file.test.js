'use strict'
// The file that a daemon names: when it is taken, and that the bytes come where it is not.

const assert = require('node:assert/strict')
const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')
const { after, afterEach, before, beforeEach, test } = require('node:test')
const { Client } = require('..')
const { status } = require('@grpc/grpc-js')
const { FakeDaemon, MODULE, Signer, headerOf, refusal, sha256 } = require('./fake-daemon')

const ARTIFACT = Buffer.from('native code in a file')
const signer = new Signer()
const daemon = new FakeDaemon()
let kiln, verifying, folder, directory, entry, file

before(() => daemon.start())
after(() => daemon.stop())
beforeEach(() => {
  kiln = new Client(daemon.address)
  verifying = new Client(daemon.address, { trustedKeys: signer.raw })
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'store-'))
  directory = path.join(folder, 'host_store')
  const module = sha256(MODULE)
  entry = path.join(directory, 'f'.repeat(64), module.slice(0, 2), module)
  file = path.join(entry, 'artifact')
  fs.mkdirSync(entry, { recursive: true, mode: 0o755 })
  fs.writeFileSync(file, ARTIFACT, { mode: 0o640 })
  daemon.requests.length = 0
  daemon.answer = named({})
})
afterEach(() => {
  kiln.close()
  verifying.close()
  fs.rmSync(folder, { recursive: true })
})

/** Answer with the file's name where the request allows it, else with the bytes. */
function named(changes) {
  return (request) => {
    if (!request.acceptHostFile) return [{ header: headerOf(ARTIFACT, signer) }, { chunk: ARTIFACT }]
    const { dev, ino } = fs.statSync(file, { bigint: true })
    const hostFile = { path: file, device: `${dev}`, inode: `${ino}`, ...changes }
    return [{ header: headerOf(ARTIFACT, signer, { hostFile }) }]
  }
}

/** Make the file one that changed just now, however slow this machine is. */
function keepYoung() {
  const hour = Date.now() / 1000 + 3600
  fs.utimesSync(file, hour, hour)
}

/** Wait until the file is older than a second. */
async function grownOld() {
  fs.utimesSync(file, 1, 1)
  const status = () => fs.statSync(file, { bigint: true })
  while (BigInt(Date.now()) * 1_000_000n - status().ctimeNs < 1_050_000_000n) {
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

test('a file is taken', async () => {
  const artifact = await kiln.compile(MODULE)
  assert.equal(artifact.hostFile, file)
  assert.match(artifact.path, /^\/proc\/self\/fd\/\d+$/)
  assert.deepEqual(fs.readFileSync(artifact.path), ARTIFACT)
  assert.deepEqual(artifact.bytes, ARTIFACT)
  artifact.checkUnchanged()
  artifact.close()
  artifact.close()
  assert.equal(artifact.path, undefined)
  assert.equal(daemon.requests.length, 1)
})

test('a file is verified, with trusted keys', async () => {
  // So young that it could change without a trace, it is read once.
  keepYoung()
  const young = await verifying.compile(MODULE)
  assert.equal(young.path, undefined)
  assert.deepEqual(young.bytes, ARTIFACT)
  await grownOld()
  const artifact = await verifying.compile(MODULE)
  assert.deepEqual(fs.readFileSync(artifact.path), ARTIFACT)
  artifact.close()
  assert.equal(daemon.requests.length, 2)
})

test('a file that was written to is noticed', async () => {
  const artifact = await kiln.compile(MODULE)
  fs.writeFileSync(file, Buffer.from(ARTIFACT).fill(1))
  assert.throws(() => artifact.checkUnchanged(), /changed/)
  assert.throws(() => artifact.bytes, { reason: 'ARTIFACT_MISMATCH' })
  artifact.close()
})

const replaced = (make) => () => {
  const aside = `${file}.aside`
  fs.renameSync(file, aside)
  make(aside)
}
const REFUSED = {
  'a link': replaced((aside) => fs.symlinkSync(aside, file)),
  'a second name': () => fs.linkSync(file, `${file}.two`),
  'another size': () => fs.appendFileSync(file, 'more'),
  'a file that others may write': () => fs.chmodSync(file, 0o662),
  'a folder that a group may write': () => fs.chmodSync(entry, 0o775),
  'a store that all may write': () => fs.chmodSync(directory, 0o777),
  'a folder that is a link': () => {
    fs.renameSync(entry, `${entry}.aside`)
    fs.symlinkSync(`${entry}.aside`, entry)
  },
  'another inode': () => (daemon.answer = named({ inode: '1' })),
  'another device': () => (daemon.answer = named({ device: '1' })),
  'another path': () => (daemon.answer = named({ path: `${folder}/artifact` })),
  'a path with dots': () =>
    (daemon.answer = named({ path: file.replace('host_store', 'host_store/../host_store') })),
  'a path that is not there': () => (daemon.answer = named({ path: file.replace('host_store', 'other') })),
}
if (process.geteuid() === 0) {
  REFUSED['the file of another user'] = () => fs.chownSync(file, 4711, 4711)
  REFUSED['the folder of another user'] = () => fs.chownSync(entry, 4711, 4711)
}
for (const [name, spoil] of Object.entries(REFUSED)) {
  test(`the bytes come instead of ${name}`, async () => {
    spoil()
    const artifact = await kiln.compile(MODULE)
    assert.deepEqual(artifact.bytes, ARTIFACT)
    assert.equal(artifact.path, undefined)
    // And for a minute the client asks for bytes at once.
    await kiln.compile(MODULE)
    assert.deepEqual(daemon.requests.map((one) => Boolean(one.acceptHostFile)), [true, false, false])
  })
}

test('with trusted keys, the bytes come instead of other content', async () => {
  fs.writeFileSync(file, Buffer.from(ARTIFACT).fill(1))
  for (const wait of [keepYoung, grownOld]) {
    await wait()
    const fresh = new Client(daemon.address, { trustedKeys: signer.raw })
    assert.deepEqual((await fresh.compile(MODULE)).bytes, ARTIFACT)
    fresh.close()
  }
  assert.equal(daemon.requests.length, 4)
})

test('no descriptor stays open', async () => {
  const open = () => fs.readdirSync('/proc/self/fd').length
  await kiln.compile(MODULE).then((artifact) => artifact.close())
  const before = open()
  for (let i = 0; i < 3; i++) (await kiln.compile(MODULE)).close()
  for (let i = 0; i < 3; i++) (await verifying.compile(MODULE)).close()
  fs.chmodSync(file, 0o666)
  for (let i = 0; i < 3; i++) (await kiln.compile(MODULE)).close()
  assert.ok(open() <= before + 1, `${open()} descriptors instead of ${before}`)
})

test('an upload is not made twice for a file that does not count', async () => {
  const inode = '1'
  daemon.answer = (request) => {
    if (daemon.requests.length === 1) throw refusal(status.NOT_FOUND, 'MODULE_NOT_LOADED')
    return named({ inode })(request)
  }
  assert.deepEqual((await kiln.compile(MODULE)).bytes, ARTIFACT)
  assert.deepEqual(daemon.requests.map((one) => Boolean(one.module)), [false, true, false])
})

test('a client without the host store asks for bytes', async () => {
  const without = new Client(daemon.address, { hostStore: false })
  assert.equal((await without.compile(MODULE)).hostFile, undefined)
  without.close()
})
