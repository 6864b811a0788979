'use strict'
// The connection to a daemon: address, TLS and token.

const fs = require('node:fs')
const net = require('node:net')
const grpc = require('@grpc/grpc-js')

const NAMED = /^(unix|unix-abstract|dns|ipv4|ipv6|xds):/
// gRPC servers refuse metadata above 8 KiB in all.
const MAX_TOKEN_BYTES = 7 * 1024
// A chunk has 1 MiB at most, and Stats some hundred KiB.
const MAX_RECEIVED_BYTES = 64 * 1024 * 1024

/** Return a grpc.Client. Throw an Error for an address or a file that cannot be used. */
function connect(address, tls) {
  checkAddress(address)
  const options = {
    'grpc.max_receive_message_length': MAX_RECEIVED_BYTES,
    'grpc.max_send_message_length': -1,
    // After a failed connection, gRPC fails each call until it tries again.
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 2_000,
  }
  if (!tls) return new grpc.Client(address, grpc.credentials.createInsecure(), options)
  const { ca, cert, key, serverName } = tls === true ? {} : tls
  if (!cert !== !key) throw new Error('tls.cert and tls.key go together')
  if (serverName) options['grpc.ssl_target_name_override'] = serverName
  const [root, own, chain] = [ca, key, cert].map((file) => (file ? pem(file) : null))
  return new grpc.Client(address, grpc.credentials.createSsl(root, own, chain), options)
}

function checkAddress(address) {
  if (typeof address !== 'string') throw new TypeError('the address has to be a string')
  const scheme = /^(https?|grpcs?|tcp):\/\//.exec(address)
  if (scheme) {
    throw new Error(`an address is host:port or unix:/path: leave out the ${scheme[0]} in front`)
  }
  const port = Number(/^.+:([0-9]{1,5})$/.exec(address)?.[1])
  if (!NAMED.test(address) && !(port > 0 && port < 65536)) {
    throw new Error(
      `an address is host:port or unix:/path, with a port from 1 to 65535, not ${address}`,
    )
  }
}

/** Return whether an address is on this machine, as far as it tells by itself. */
function isLocal(address) {
  if (/^unix(-abstract)?:/.test(address)) return true
  const host = address
    .replace(/^(dns|ipv4|ipv6):(\/\/[^/]*\/)?/, '')
    .replace(/:[0-9]+$/, '')
    .replace(/^\[|\]$/g, '')
  if (net.isIPv4(host)) return host.startsWith('127.')
  return host === '::1' || host === 'localhost' || host.endsWith('.localhost')
}

/** Return PEM: the text itself, or that of the file which it names. */
function pem(source) {
  if (source instanceof Uint8Array) return Buffer.from(source)
  if (typeof source === 'string' && source.includes('-----BEGIN ')) return Buffer.from(source)
  return fs.readFileSync(source)
}

/** Return a function that returns the value of `authorization` for the next call. */
function authorization(address, { token, tokenFile, tls }) {
  if (token !== undefined && tokenFile !== undefined) {
    throw new Error('give token or tokenFile, not both')
  }
  if ((token ?? tokenFile) !== undefined && !tls && !isLocal(address)) {
    throw new Error(
      `cannot send a token to ${address} in plaintext: anybody on the way could read it; set tls`,
    )
  }
  if (token !== undefined) {
    const value = bearer(token, 'the token')
    return () => value
  }
  if (tokenFile === undefined) return () => undefined
  // For each call: so a new token in the file counts at once.
  return () => bearer(fs.readFileSync(tokenFile, 'latin1'), `the token in ${tokenFile}`)
}

function bearer(text, what) {
  const token = String(text).trim().replace(/^bearer\s+/i, '')
  // The message does not quote the token.
  if (!/^[!-~]+$/.test(token) || token.length > MAX_TOKEN_BYTES) {
    throw new Error(
      `cannot use ${what}: expected one token of at most ${MAX_TOKEN_BYTES} visible ASCII` +
        ' characters, and nothing else',
    )
  }
  return `Bearer ${token}`
}

module.exports = { authorization, connect, isLocal }
