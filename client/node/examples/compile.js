#!/usr/bin/env node
'use strict'
// node compile.js ADDRESS MODULE.wasm [--key KEY.pem] [--engine ID] [--out FILE]

const fs = require('node:fs')
const { parseArgs } = require('node:util')
const { Client, WasmkilnError } = require('..')

async function main() {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      key: { type: 'string' },
      engine: { type: 'string', default: 'wasmtime' },
      out: { type: 'string' },
      ca: { type: 'string' },
      'token-file': { type: 'string' },
    },
  })
  const [address, path] = positionals
  if (!path) throw new Error('usage: compile.js ADDRESS MODULE.wasm [--key KEY.pem] [--engine ID]')
  const kiln = new Client(address, {
    trustedKeys: values.key,
    tls: values.ca && { ca: values.ca },
    tokenFile: values['token-file'],
  })
  try {
    const module = fs.readFileSync(path)
    for (let call = 0; call < 2; call++) {
      const artifact = await kiln.compile(module, { engine: values.engine })
      let where = artifact.origin
      if (artifact.hostFile && where !== 'host_store') where += ', as a file of the host store'
      console.log(
        `node compiled sha256:${artifact.moduleSha256} with ${artifact.engine.id},` +
          ` ${artifact.sizeBytes} bytes, from ${where}`,
      )
      if (values.out) fs.writeFileSync(values.out, artifact.bytes)
      artifact.close()
    }
    // A preamble and an unknown section: no engine takes it.
    await kiln.compile(Buffer.from('0061736d010000007f', 'hex'), { engine: values.engine })
  } catch (error) {
    if (!(error instanceof WasmkilnError)) throw error
    console.log(`node error ${error.reason}: ${error.message}`)
    if (error.reason !== 'MODULE_INVALID') process.exitCode = 1
  } finally {
    kiln.close()
  }
}

main().catch((error) => {
  console.error(`error: ${error.message}`)
  process.exitCode = 2
})
