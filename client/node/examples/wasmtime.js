'use strict'
// Just enough of wasmtime's C API to run functions of an artifact: numbers in, numbers out.
// The library is libwasmtime.so of the engine's version, such as `_libwasmtime.so` in the wheel of
// PyPI's wasmtime. Needs `npm install koffi`.

const koffi = require('koffi')

// Sizes and offsets in wasmtime's headers, for 64 bit.
const VALUE = { size: 32, of: 8 } // wasmtime_val_t
const EXTERN = { size: 32, of: 8, function: 0 } // wasmtime_extern_t
const INSTANCE_SIZE = 16 // wasmtime_instance_t
const HANDLE_SIZE = 8
const KINDS = [
  ['i32', 'writeInt32LE', 'readInt32LE'],
  ['i64', 'writeBigInt64LE', 'readBigInt64LE'],
  ['f32', 'writeFloatLE', 'readFloatLE'],
  ['f64', 'writeDoubleLE', 'readDoubleLE'],
]

/** An engine with default settings. It lives as long as the process. */
class Wasmtime {
  #c
  #engine

  constructor(library) {
    // Buffers are passed as `void *`, pointers that the library returned as numbers.
    const c = koffi.load(library)
    this.#c = {
      engine: c.func('uint64_t wasm_engine_new()'),
      loadFile: c.func(
        'uint64_t wasmtime_module_deserialize_file(uint64_t engine, str path, void *module)',
      ),
      loadBytes: c.func(
        'uint64_t wasmtime_module_deserialize(uint64_t engine, void *bytes, size_t n,' +
          ' void *module)',
      ),
      store: c.func('uint64_t wasmtime_store_new(uint64_t engine, void *data, void *finalizer)'),
      context: c.func('uint64_t wasmtime_store_context(uint64_t store)'),
      instance: c.func(
        'uint64_t wasmtime_instance_new(uint64_t context, uint64_t module, void *imports,' +
          ' size_t n, void *instance, void *trap)',
      ),
      export: c.func(
        'bool wasmtime_instance_export_get(uint64_t context, void *instance, str name, size_t n,' +
          ' void *item)',
      ),
      call: c.func(
        'uint64_t wasmtime_func_call(uint64_t context, void *func, void *args, size_t nargs,' +
          ' void *results, size_t nresults, void *trap)',
      ),
      errorMessage: c.func('void wasmtime_error_message(uint64_t error, void *message)'),
      errorDelete: c.func('void wasmtime_error_delete(uint64_t error)'),
      trapMessage: c.func('void wasm_trap_message(uint64_t trap, void *message)'),
      trapDelete: c.func('void wasm_trap_delete(uint64_t trap)'),
      bytesDelete: c.func('void wasm_byte_vec_delete(void *bytes)'),
    }
    this.#engine = this.#c.engine()
  }

  /** Load an artifact of a module without imports. Return a function that calls its exports. */
  load(artifact) {
    if (Object.keys(artifact.changedSettings).length > 0) {
      throw new Error('this example has an engine with default settings only')
    }
    const module = Buffer.alloc(HANDLE_SIZE)
    // A file is mapped: nothing is read before it runs.
    if (artifact.path) {
      this.#check(this.#c.loadFile(this.#engine, artifact.path, module))
      artifact.checkUnchanged()
    } else {
      const { bytes } = artifact
      this.#check(this.#c.loadBytes(this.#engine, bytes, bytes.length, module))
    }
    const context = this.#c.context(this.#c.store(this.#engine, null, null))
    const instance = Buffer.alloc(INSTANCE_SIZE)
    const trap = Buffer.alloc(HANDLE_SIZE)
    const handle = module.readBigUInt64LE()
    this.#check(this.#c.instance(context, handle, null, 0, instance, trap), trap)
    return (name, kinds, numbers) => this.#call(context, instance, name, kinds, numbers)
  }

  /** Call an export. `kinds` names what it takes and then what it returns: ['i32', 'i32']. */
  #call(context, instance, name, kinds, numbers) {
    const item = Buffer.alloc(EXTERN.size)
    const found = this.#c.export(context, instance, name, Buffer.byteLength(name), item)
    if (!found || item[0] !== EXTERN.function) throw new Error(`no function ${name} is exported`)
    const [result] = kinds.slice(-1)
    const values = numbers.map((number, place) => written(kinds[place], number))
    const answer = Buffer.alloc(VALUE.size)
    const trap = Buffer.alloc(HANDLE_SIZE)
    const func = item.subarray(EXTERN.of)
    const args = Buffer.concat(values)
    this.#check(this.#c.call(context, func, args, values.length, answer, 1, trap), trap)
    const [, , read] = KINDS.find(([kind]) => kind === result)
    return answer[read](VALUE.of)
  }

  /** Throw what the library says, if it says something. */
  #check(error, trap) {
    const trapped = trap?.readBigUInt64LE() ?? 0n
    if (!error && !trapped) return
    const message = Buffer.alloc(16) // wasm_byte_vec_t: size and data
    if (error) this.#c.errorMessage(error, message)
    else this.#c.trapMessage(trapped, message)
    const size = Number(message.readBigUInt64LE())
    const data = message.readBigUInt64LE(8)
    const text = Buffer.from(koffi.view(data, size)).toString('utf8').replace(/\0$/, '')
    this.#c.bytesDelete(message)
    if (error) this.#c.errorDelete(error)
    else this.#c.trapDelete(trapped)
    throw new Error(`wasmtime: ${text}`)
  }
}

function written(kind, number) {
  const value = Buffer.alloc(VALUE.size)
  const index = KINDS.findIndex(([name]) => name === kind)
  value[0] = index
  value[KINDS[index][1]](number, VALUE.of)
  return value
}

module.exports = { Wasmtime }
