'use strict'
// Opens the file of the host store that a daemon's answer names, as docs/how-to/host-store.md
// of wasmkiln says. Loading an artifact is running its code: so find out whose file it is, on
// descriptors, and never open a path twice. Whatever is not as it should be is an Error, and the
// caller asks the daemon for the bytes instead.

const assert = require('node:assert')
const fs = require('node:fs')
const path = require('node:path')

const { O_RDONLY, O_NOFOLLOW, O_DIRECTORY, O_NONBLOCK } = fs.constants
const SHARED_WRITE = 0o022n
const bigint = true

/** Return { descriptor, status } of the artifact that a checked header names. */
function openHostFile({ fingerprint, moduleSha256: module, hostFile, sizeBytes }) {
  const names = [fingerprint, module.slice(0, 2), module, 'artifact']
  const store = hostFile.path.slice(0, -names.join('/').length - 1)
  const isOfStore = path.isAbsolute(store) && path.join(store, ...names) === hostFile.path
  assert(isOfStore && /^[0-9a-f]{64}$/.test(fingerprint), 'no path of a host store')
  // The directory itself may be a link; what lies in the store may not.
  const directory = fs.realpathSync(store)
  const owners = ownersOf(directory)
  const opened = []
  const open = (place, flags) => {
    opened.push(fs.openSync(place, O_RDONLY | flags))
    const status = fs.fstatSync(opened.at(-1), { bigint })
    const isTrusted = owners.includes(status.uid) && !(status.mode & SHARED_WRITE)
    assert(isTrusted, 'of another user, or others can write to it')
    return status
  }
  try {
    let status = open(directory, O_DIRECTORY)
    for (const name of names) {
      // Node has no openat: through this link, Linux opens relative to the descriptor. A pipe in
      // place of the file must not make the caller wait.
      const kind = name === 'artifact' ? O_NONBLOCK : O_DIRECTORY
      status = open(`/proc/self/fd/${opened.at(-1)}/${name}`, O_NOFOLLOW | kind)
    }
    assert(status.isFile() && status.nlink === 1n, 'not a regular file with one name')
    // In a container or on another machine the path may lead to another file than the daemon's.
    const found = [status.size, status.dev, status.ino].map(Number)
    assert.deepEqual(found, [sizeBytes, hostFile.device, hostFile.inode])
    return { descriptor: opened.pop(), status }
  } finally {
    for (const descriptor of opened) fs.closeSync(descriptor)
  }
}

/**
 * Return whose files count: root's, this process's user's and, if nobody but root and that user can
 * put another folder into its place, those of the owner of the store's directory.
 */
function ownersOf(directory) {
  const owners = [0n, BigInt(process.geteuid())]
  const { uid: owner } = fs.statSync(directory, { bigint })
  for (let above = directory; above !== '/'; ) {
    above = path.dirname(above)
    const { uid, mode } = fs.statSync(above, { bigint })
    // A sticky folder does not help: anybody could have made the store in it.
    if ((uid !== 0n && uid !== owner) || mode & SHARED_WRITE) return owners
  }
  return [...owners, owner]
}

/** Return where an engine can map a file, as long as it is open. */
const pathOf = ({ descriptor }) => `/proc/self/fd/${descriptor}`

/** Return whether the file was written to since it was opened. */
function hasChanged({ descriptor, status }) {
  const now = fs.fstatSync(descriptor, { bigint })
  return ['size', 'mtimeNs', 'ctimeNs'].some((name) => now[name] !== status[name])
}

/** Return whether the file changed so recently that it may change without a trace in its times. */
function isYoung({ status: { mtimeNs, ctimeNs } }) {
  const changed = mtimeNs > ctimeNs ? mtimeNs : ctimeNs
  return BigInt(Date.now()) * 1_000_000n - changed < 1_000_000_000n
}

module.exports = { openHostFile, hasChanged, isYoung, pathOf }
