#!/usr/bin/env node
'use strict'
// node host.js LIBRARY ADDRESS MODULE.wasm FUNCTION NUMBER…, with the environment's KILN_KEY (the
// file of a trusted key) and KILN_ENGINE. Compiles a module without imports, loads the artifact
// into wasmtime's C library and calls a function of i32. Needs `npm install koffi`.

const fs = require('node:fs')
const koffi = require('koffi')
const { Client } = require('..')

const HANDLE_SIZE = 8
const PAIR_SIZE = 16 // wasmtime_instance_t, wasm_byte_vec_t
// wasmtime_extern_t and wasmtime_val_t: a byte that says which (0 is i32), and what it is at 8.
const UNION = { size: 32, of: 8, isFunction: 0 }

async function main([library, address, path, name, ...numbers]) {
  if (!name) throw new Error('usage: host.js LIBRARY ADDRESS MODULE.wasm FUNCTION NUMBER…')
  const { KILN_KEY: trustedKeys, KILN_ENGINE: engine = 'wasmtime' } = process.env
  const kiln = new Client(address, { trustedKeys })
  try {
    const artifact = await kiln.compile(fs.readFileSync(path), { engine })
    const result = called(koffi.load(library), artifact, name, numbers)
    const where = artifact.path ? 'mapped from the host store' : `from ${artifact.origin}`
    const call = `${name}(${numbers.join(', ')})`
    console.log(`node host ran ${call} = ${result} with ${artifact.engine.id}, ${where}`)
    artifact.close()
  } finally {
    kiln.close()
  }
}

/** Return what a function of the artifact returns. */
function called(library, artifact, name, numbers) {
  // Buffers are passed as `void *`, pointers that the library returned as numbers.
  const c = (signature) => library.func(signature)
  /** Throw what the library says, if it says something. */
  const check = (error, trap) => {
    const trapped = trap?.readBigUInt64LE() ?? 0n
    if (!error && !trapped) return
    const text = Buffer.alloc(PAIR_SIZE)
    if (error) c('void wasmtime_error_message(uint64_t error, void *text)')(error, text)
    else c('void wasm_trap_message(uint64_t trap, void *text)')(trapped, text)
    const said = koffi.view(text.readBigUInt64LE(8), Number(text.readBigUInt64LE()))
    throw new Error(`wasmtime: ${Buffer.from(said)}`)
  }
  const engine = c('uint64_t wasm_engine_new()')()
  const module = Buffer.alloc(HANDLE_SIZE)
  const trap = Buffer.alloc(HANDLE_SIZE)
  if (artifact.path) {
    // A file is mapped: nothing is read before it runs.
    const load = c('uint64_t wasmtime_module_deserialize_file(uint64_t, str path, void *module)')
    check(load(engine, artifact.path, module))
    artifact.checkUnchanged()
  } else {
    const load = c('uint64_t wasmtime_module_deserialize(uint64_t, void *, size_t, void *module)')
    check(load(engine, artifact.bytes, artifact.bytes.length, module))
  }
  const store = c('uint64_t wasmtime_store_new(uint64_t, void *, void *)')(engine, null, null)
  const context = c('uint64_t wasmtime_store_context(uint64_t)')(store)
  const instance = Buffer.alloc(PAIR_SIZE)
  const instantiate = c(
    'uint64_t wasmtime_instance_new(uint64_t, uint64_t module, void *, size_t, void *, void *)',
  )
  check(instantiate(context, module.readBigUInt64LE(), null, 0, instance, trap), trap)
  const item = Buffer.alloc(UNION.size)
  const find = c('bool wasmtime_instance_export_get(uint64_t, void *, str name, size_t, void *)')
  const isFound = find(context, instance, name, Buffer.byteLength(name), item)
  if (!isFound || item[0] !== UNION.isFunction) throw new Error(`no function ${name} is exported`)
  const values = Buffer.alloc(UNION.size * (numbers.length + 1))
  numbers.forEach((number, at) => values.writeInt32LE(number, at * UNION.size + UNION.of))
  const result = Buffer.alloc(UNION.size)
  const call = c(
    'uint64_t wasmtime_func_call(uint64_t, void *, void *, size_t, void *, size_t, void *)',
  )
  const func = item.subarray(UNION.of)
  check(call(context, func, values, numbers.length, result, 1, trap), trap)
  return result.readInt32LE(UNION.of)
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`)
  process.exitCode = 2
})
