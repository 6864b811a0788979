'use strict'
// Why a connection failed, in one sentence with what to do.

const PLAIN = [
  [/ENOTFOUND|EAI_AGAIN|Name resolution failed/, 'unknown host'],
  [/ECONNREFUSED/, 'connection refused'],
  [/ENOENT/, 'no such socket'],
  [/EACCES/, 'permission denied for this user'],
  [/ETIMEDOUT|EHOSTUNREACH|ENETUNREACH/, 'host unreachable'],
]

const BY_TLS = [
  [
    /self[- ]signed certificate|unable to (verify the first|get (local )?issuer) certificate/,
    'unknown_ca',
    'is signed by none of the trusted CAs: set tls.ca to the CA of the daemon',
  ],
  [
    /does not match certificate's altnames/,
    'wrong_host',
    'is for other hosts: use one of its names in the address, or as tls.serverName',
  ],
  [
    /certificate has expired/,
    'certificate_expired',
    "has expired: its operator has to renew it; or this machine's clock is wrong",
  ],
  [
    /certificate is not yet valid/,
    'certificate_not_yet_valid',
    'is not valid yet: compare the clocks of both machines',
  ],
]

/** Return { cause, sentence } for gRPC's own words; the cause is '' where TLS is none. */
function diagnose(text, address, tls) {
  for (const [words, cause, sentence] of BY_TLS) {
    if (words.test(text)) {
      return { cause, sentence: `the certificate of the daemon at ${address} ${sentence}` }
    }
  }
  if (/wrong version number|packet length too long|EPROTO/.test(text)) {
    return {
      cause: 'speaks_no_tls',
      sentence: `the daemon at ${address} speaks no TLS: leave out tls`,
    }
  }
  const known = PLAIN.find(([words]) => words.test(text))?.[1]
  if (known || !/No connection established/.test(text)) {
    return {
      cause: '',
      sentence:
        `no daemon answers at ${address} (${known ?? 'the connection was lost'}): start one with` +
        ' `wasmkilnd serve`, or check the address',
    }
  }
  // A TLS server closes a connection in plaintext without a word, and one without the client
  // certificate that it asks for too.
  const maybe = tls
    ? 'ask for a client certificate: see tls.cert and tls.key'
    : 'speak TLS only: see the option tls'
  return {
    cause: '',
    sentence:
      `the server at ${address} closes connections: it may be no wasmkiln daemon, or it may` +
      ` ${maybe}`,
  }
}

module.exports = { diagnose }
