#!/usr/bin/env node
'use strict'
// node host.js LIBRARY ADDRESS MODULE.wasm FUNCTION NUMBER… [--key KEY.pem] [--engine ID]
// Compiles a module, loads the artifact into wasmtime, and calls a function of i32 with it.

const fs = require('node:fs')
const { parseArgs } = require('node:util')
const { Client } = require('..')
const { Wasmtime } = require('./wasmtime')

async function main() {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      key: { type: 'string' },
      engine: { type: 'string', default: 'wasmtime' },
    },
  })
  const [library, address, path, name, ...numbers] = positionals
  if (!name) throw new Error('usage: host.js LIBRARY ADDRESS MODULE.wasm FUNCTION NUMBER…')
  const kiln = new Client(address, { trustedKeys: values.key })
  try {
    const artifact = await kiln.compile(fs.readFileSync(path), { engine: values.engine })
    const call = new Wasmtime(library).load(artifact)
    const kinds = Array(numbers.length + 1).fill('i32')
    const result = call(name, kinds, numbers.map(Number))
    const where = artifact.path ? 'mapped from the host store' : `from ${artifact.origin}`
    const called = `${name}(${numbers.join(', ')}) = ${result}`
    console.log(`node host ran ${called} with ${artifact.engine.id}, ${where}`)
    artifact.close()
  } finally {
    kiln.close()
  }
}

main().catch((error) => {
  console.error(`error: ${error.message}`)
  process.exitCode = 2
})
