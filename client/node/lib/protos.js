'use strict'
// The messages of the API, read from the .proto files when the package is loaded.

const fs = require('node:fs')
const path = require('node:path')
const protobuf = require('protobufjs')

// A published package has its own copy. A checkout has none: there is one set of protos for all.
const OWN = path.join(__dirname, '..', 'protos')
const FOLDER = fs.existsSync(OWN) ? OWN : path.join(__dirname, '..', '..', '..', 'protos')

const root = new protobuf.Root()
// google/protobuf/*.proto come with protobufjs.
root.resolvePath = (_, name) => (protobuf.common.get(name) ? name : path.join(FOLDER, name))
root.loadSync([
  'wasmkiln/v1/module_service.proto',
  'google/rpc/status.proto',
  'google/rpc/error_details.proto',
])
root.resolveAll()

const service = root.lookupService('wasmkiln.v1.ModuleService')
const PLAIN = { enums: String, bytes: Buffer, defaults: true, oneofs: true }

/** Return what calling a method of ModuleService needs: its path, and its messages' types. */
function method(name) {
  const found = service.methods[name]
  return {
    path: `/wasmkiln.v1.ModuleService/${name}`,
    encode: (request) => {
      const type = found.resolvedRequestType
      return Buffer.from(type.encode(type.fromObject(request)).finish())
    },
    decode: (bytes) => found.resolvedResponseType.decode(bytes),
  }
}

/** Return a decoded message as a plain object, its 64 bit numbers as `longs` says. */
function plain(message, longs) {
  return message.$type.toObject(message, { ...PLAIN, longs })
}

const details = new Map(
  ['ErrorInfo', 'RetryInfo', 'BadRequest'].map((name) => [
    `google.rpc.${name}`,
    root.lookupType(`google.rpc.${name}`),
  ]),
)

/** Return the details of an encoded google.rpc.Status, by type name. Throw if it is damaged. */
function decodeStatus(bytes) {
  const found = []
  for (const any of root.lookupType('google.rpc.Status').decode(bytes).details.slice(0, 100)) {
    // Both spellings are in use for the field's name.
    const name = String(any.typeUrl ?? any.type_url ?? '').split('/').pop()
    const type = details.get(name)
    if (type) found.push([name, plain(type.decode(any.value), Number)])
  }
  return found
}

module.exports = { FOLDER, root, method, plain, decodeStatus }
