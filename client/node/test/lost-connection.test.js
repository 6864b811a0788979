'use strict'
// What a caller reads when the daemon ends, or something else listens at its address.

const assert = require('node:assert/strict')
const { spawn } = require('node:child_process')
const net = require('node:net')
const path = require('node:path')
const { test } = require('node:test')
const { Client, ConnectionFailed } = require('..')
const { MODULE } = require('./fake-daemon')

// A daemon in a process of its own that never answers, and says when it has a call.
const DAEMON = `
const { FakeDaemon } = require(${JSON.stringify(path.join(__dirname, 'fake-daemon.js'))})
const daemon = new FakeDaemon()
daemon.answer = (_, call) => {
  call.end = () => {}
  process.send({ called: true })
  return []
}
daemon.start().then(() => process.send({ address: daemon.address }))
`

const message = (process) => new Promise((resolve) => process.once('message', resolve))

test('the daemon is killed while it compiles', async () => {
  const stdio = ['ignore', 'inherit', 'inherit', 'ipc']
  const child = spawn(process.execPath, ['-e', DAEMON], { stdio })
  const { address } = await message(child)
  const kiln = new Client(address)
  const called = message(child)
  const running = kiln.compile(MODULE)
  await Promise.all([
    assert.rejects(running, (error) => {
      assert.ok(error instanceof ConnectionFailed, error.stack)
      const expected = `no daemon answers at ${address} (the connection was lost): `
      assert.ok(error.message.startsWith(expected), error.message)
      return true
    }),
    called.then(() => child.kill('SIGKILL')),
  ])
  kiln.close()
})

const STRANGERS = {
  'closes at once': (socket) => socket.destroy(),
  'speaks HTTP/1': (socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'),
}
for (const [name, behave] of Object.entries(STRANGERS)) {
  test(`a server that ${name}`, async () => {
    const server = net.createServer((socket) => behave(socket.on('error', () => {})))
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = `127.0.0.1:${server.address().port}`
    const kiln = new Client(address)
    await assert.rejects(kiln.stats(), (error) => {
      assert.ok(error instanceof ConnectionFailed, error.stack)
      const expected = `the server at ${address} closes connections: it may be no wasmkiln daemon`
      return error.message.startsWith(expected) || assert.fail(error.message)
    })
    kiln.close()
    server.close()
  })
}
