'use strict'
// Compares an artifact's header with what the call asked for. A signature cannot replace that: it
// binds the artifact to its header, and an attacker may answer with another signed artifact.

const { ArtifactMismatch } = require('./errors')
const { quoted } = require('./untrusted')

// By an engine's name: the setting and the value that choose its fast compiler.
const FAST = { wasmtime: ['strategy', 'winch'], wasmer: ['compiler', 'singlepass'] }
// Settings that artifacts of earlier daemons do not state, and what these artifacts have.
const UNSTATED = { strategy: 'cranelift', compiler: 'cranelift', collector: 'drc' }
// A module's first eight bytes: magic number, version, and layer, which marks a component.
const KINDS = { '0061736d01000000': 'KIND_CORE_MODULE', '0061736d0d000100': 'KIND_COMPONENT' }

/**
 * Throw ArtifactMismatch when a header is not about what the call asked for.
 *
 * `asked` has moduleSha256, module (undefined where only the digest is known) and the request.
 */
function checkHeader(asked, header) {
  const { request } = asked
  const name = header.engine.name
  const id = `${name}-${header.engine.version}`
  compare('an artifact of module', asked.moduleSha256, header.moduleSha256)
  if (request.engine && request.engine !== name) compare('engine', request.engine, id)
  compare('an engine whose id is', id, header.engine.id)
  if (request.target) compare('target', request.target, header.target)
  if (request.cpu) compare('cpu', request.cpu, header.cpu)
  checkSettings(request.settings, header)
  const kind = asked.module && KINDS[Buffer.from(asked.module.subarray(0, 8)).toString('hex')]
  if (kind) compare('an artifact of kind', kind, header.kind)
  if (header.hostFile && !request.acceptHostFile) {
    throw new ArtifactMismatch("asked for the artifact's bytes, got a file's name")
  }
  if (header.inlineArtifact.length > request.inlineLimitBytes) {
    throw new ArtifactMismatch('got more bytes in the header than asked for')
  }
  if (header.contentEncoding) {
    const encoding = quoted(header.contentEncoding)
    throw new ArtifactMismatch(`got bytes in an encoding that was not asked for: ${encoding}`)
  }
}

function checkSettings(asked, header) {
  for (const [name, value] of Object.entries(asked)) {
    compare(`setting ${quoted(name)}`, value, header.settings[name] ?? UNSTATED[name] ?? '')
  }
  // A setting that the call did not name has to have the engine's default.
  for (const [name, value] of Object.entries(header.changedSettings)) {
    if (asked[name] !== value) {
      compare(`setting ${quoted(name)}`, asked[name] ?? 'as the engine has it', value)
    }
  }
  const [setting, value] = FAST[header.engine.name] ?? []
  const isFast = setting !== undefined && asked[setting] === value
  compare('an artifact whose is_fast is', String(isFast), String(header.isFast))
}

function compare(what, asked, got) {
  if (asked !== got) {
    throw new ArtifactMismatch(`asked for ${what} ${quoted(asked)}, got ${quoted(got) || 'none'}`)
  }
}

module.exports = { checkHeader }
