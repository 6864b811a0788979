'use strict'
// The messages and methods of the API, read from the .proto files when the package is loaded.

const path = require('node:path')
const protoLoader = require('@grpc/proto-loader')

const files = ['wasmkiln/v1/module_service', 'google/rpc/status', 'google/rpc/error_details']
// A published package has its own copy. A checkout has none: there is one set for all languages.
const folders = ['../protos', '../../../protos'].map((each) => path.join(__dirname, each))

module.exports = protoLoader.loadSync(
  files.map((each) => `${each}.proto`),
  { includeDirs: folders, longs: Number, enums: String, defaults: true, oneofs: true },
)
