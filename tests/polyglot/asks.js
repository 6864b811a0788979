// What Asks.java does, in Node.
'use strict'
const fs = require('node:fs')
const { Client, WasmkilnError } = require('wasmkiln')

const [address, path, ...words] = process.argv.slice(2)
const flags = {}
for (let at = 0; at < words.length; at += 2) flags[words[at].slice(2)] = words[at + 1]
const controller = new AbortController()
const line = () => new Promise((resolve) => process.stdin.once('data', resolve))

function say(...columns) {
  console.log(columns.join('\t').replaceAll('\n', ' '))
}

async function ask() {
  const kiln = new Client(address, {
    ...(flags.key && { trustedKeys: flags.key }),
    ...(flags.ca && { tls: { ca: flags.ca } }),
    ...(flags['token-file'] && { tokenFile: flags['token-file'] }),
    hostStore: Boolean(flags.store),
  })
  const options = { signal: controller.signal }
  if (flags.fresh) options.skipCacheLookup = true
  if (flags['accept-fast']) options.acceptFast = true
  if (flags.engine) options.engine = flags.engine
  if (flags.compatibility) options.compatibility = fs.readFileSync(flags.compatibility)
  if (flags['timeout-ms']) options.timeoutMs = Number(flags['timeout-ms'])
  const module = fs.readFileSync(path)
  try {
    if (flags.load) {
      const loaded = await kiln.load(module, { ...options, background: true })
      return say('loaded', '', loaded.engine, '', loaded.sha256)
    }
    if (flags.missing) {
      const key = { moduleSha256: flags.missing, engine: flags.engine }
      return say('missing', '', '', (await kiln.findMissing([key], options)).length, '')
    }
    const artifact = flags.digest
      ? await kiln.compileDigest(flags.digest, options)
      : await kiln.compile(module, options)
    if (flags.pause === 'file') {
      console.log('opened')
      await line()
    }
    const { bytes, engine, moduleSha256, origin } = artifact
    artifact.checkUnchanged()
    if (flags.out) fs.writeFileSync(flags.out, bytes)
    const from = artifact.path ? 'FILE' : `ORIGIN_${origin.toUpperCase()}`
    artifact.close()
    say('compiled', from, engine.id, bytes.length, moduleSha256)
  } finally {
    kiln.close()
  }
}

async function main() {
  if (flags.pause === 'call') line().then(() => controller.abort())
  for (let left = Number(flags.times ?? 1); left > 0; left--) {
    await ask().catch((error) => {
      if (error.name === 'AbortError') return say('cancelled', '', '', '', '')
      if (!(error instanceof WasmkilnError)) return say('unusable', '', '', '', error.message)
      const { reason, requestId, retryAfterMs, metadata, message } = error
      say(reason, requestId, retryAfterMs ? Math.round(retryAfterMs) : '', metadata.cause ?? '', message)
    })
  }
  process.exit()
}
main()
