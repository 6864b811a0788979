'use strict'
// A server that answers Compile as a test says, with artifacts that it signs.

const crypto = require('node:crypto')
const grpc = require('@grpc/grpc-js')
const { root } = require('../lib/protos')

const MODULE = Buffer.from('0061736d01000000', 'hex')
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex')
const ENGINE = { name: 'wasmtime', version: '50.0.1', coreVersion: '50', compiler: 'cranelift' }

/** A key pair as a daemon has it. */
class Signer {
  constructor() {
    const { publicKey, privateKey } = crypto.generateKeyPairSync('ed25519')
    this.raw = publicKey.export({ format: 'der', type: 'spki' }).subarray(12)
    this.pem = publicKey.export({ format: 'pem', type: 'spki' })
    this.privateKey = privateKey
  }

  /** Return the envelope about a header. `change` may edit the statement before it is signed. */
  sign(header, change = () => {}) {
    const { id, ...engine } = header.engine
    const statement = {
      _type: 'https://in-toto.io/Statement/v1',
      subject: [{ name: 'artifact', digest: { sha256: header.artifactSha256 } }],
      predicateType: 'https://slsa.dev/provenance/v1',
      predicate: {
        buildDefinition: {
          buildType: 'urn:wasmkiln:compile:v1',
          externalParameters: {
            changedSettings: { ...header.changedSettings },
            cpu: header.cpu,
            engine,
            fingerprint: header.fingerprint,
            kind: 'core',
            settings: { ...header.settings },
            target: header.target,
          },
          resolvedDependencies: [{ name: 'module', digest: { sha256: header.moduleSha256 } }],
        },
      },
    }
    change(statement)
    return this.envelope(Buffer.from(JSON.stringify(statement)), 'application/vnd.in-toto+json')
  }

  envelope(payload, payloadType) {
    const start = `DSSEv1 ${payloadType.length} ${payloadType} ${payload.length} `
    const signed = Buffer.concat([Buffer.from(start), payload])
    const sig = crypto.sign(null, signed, this.privateKey).toString('base64')
    const signatures = [{ keyid: sha256(this.raw), sig }]
    const document = { payload: payload.toString('base64'), payloadType, signatures }
    return Buffer.from(JSON.stringify(document))
  }
}

/** Return an honest header of an artifact. */
function headerOf(artifact, signer, changes = {}) {
  const header = {
    moduleSha256: sha256(MODULE),
    artifactSha256: sha256(artifact),
    sizeBytes: artifact.length,
    engine: { id: 'wasmtime-50.0.1', ...ENGINE },
    target: 'x86_64-unknown-linux-gnu',
    cpu: 'x86-64-v3',
    settings: { consume_fuel: 'false' },
    changedSettings: {},
    fingerprint: 'f'.repeat(64),
    origin: 'ORIGIN_COMPILED',
    kind: 'KIND_CORE_MODULE',
    ...changes,
  }
  if (signer && !changes.attestation) header.attestation = signer.sign(header)
  return header
}

/** A server; `answer(request, call)` returns the messages of a Compile, or throws an error. */
class FakeDaemon {
  async start() {
    this.requests = []
    const type = (name) => root.lookupType(`wasmkiln.v1.${name}`)
    const [Request, Response] = [type('CompileRequest'), type('CompileResponse')]
    this.server = new grpc.Server()
    const compile = {
      path: '/wasmkiln.v1.ModuleService/Compile',
      requestStream: false,
      responseStream: true,
      requestDeserialize: (bytes) => Request.toObject(Request.decode(bytes), { bytes: Buffer }),
      requestSerialize: (request) => Buffer.from(Request.encode(request).finish()),
      // A test may send bytes that are no message.
      responseSerialize: (answer) =>
        Buffer.isBuffer(answer) ? answer : Buffer.from(Response.encode(Response.fromObject(answer)).finish()),
      responseDeserialize: (bytes) => Response.decode(bytes),
    }
    this.server.addService({ compile }, { compile: (call) => this.#answer(call) })
    const credentials = grpc.ServerCredentials.createInsecure()
    this.port = await new Promise((resolve, reject) => {
      const done = (error, port) => (error ? reject(error) : resolve(port))
      this.server.bindAsync('127.0.0.1:0', credentials, done)
    })
    this.address = `127.0.0.1:${this.port}`
    return this
  }

  #answer(call) {
    this.requests.push(call.request)
    try {
      for (const message of this.answer(call.request, call)) call.write(message)
      call.end()
    } catch (error) {
      call.emit('error', error)
    }
  }

  stop() {
    this.server.forceShutdown()
  }
}

/** Return an error as daemons send it. */
function refusal(code, reason, { metadata = {}, retryAfter, field } = {}) {
  const details = [['ErrorInfo', { reason, domain: 'wasmkiln', metadata }]]
  if (retryAfter) details.push(['RetryInfo', { retryDelay: retryAfter }])
  if (field) details.push(['BadRequest', { fieldViolations: [{ field, description: 'no' }] }])
  const Status = root.lookupType('google.rpc.Status')
  const packed = details.map(([name, detail]) => {
    const type = root.lookupType(`google.rpc.${name}`)
    const value = type.encode(type.fromObject(detail)).finish()
    const url = `type.googleapis.com/google.rpc.${name}`
    return { typeUrl: url, type_url: url, value }
  })
  const trailers = new grpc.Metadata()
  const status = Status.encode(Status.fromObject({ code, message: 'cannot', details: packed }))
  trailers.set('grpc-status-details-bin', Buffer.from(status.finish()))
  return Object.assign(new Error('cannot'), { code, details: 'cannot', metadata: trailers })
}

module.exports = { FakeDaemon, MODULE, Signer, headerOf, refusal, sha256 }
