'use strict'
// Opens the file of the host store that a daemon's answer names, as docs/how-to/map-artifacts.md of wasmkiln
// says. Loading an artifact is running its code: so find out whose file it is, on descriptors,
// and never open a path twice.

const fs = require('node:fs')
const path = require('node:path')

const { O_RDONLY, O_NOFOLLOW, O_DIRECTORY, O_NONBLOCK } = fs.constants
const SHARED_WRITE = 0o022n
const DIGEST = /^[0-9a-f]{64}$/

/** Why a file does not count. The caller asks the daemon for the bytes instead. */
class Refused extends Error {}

/** Return { descriptor, status } of the artifact that a checked header names. Throw Refused. */
function openHostFile(header) {
  if (process.platform !== 'linux') throw new Refused('this system has no /proc/self/fd')
  const named = header.hostFile
  const { fingerprint, moduleSha256: module } = header
  if (!DIGEST.test(fingerprint) || !DIGEST.test(module)) {
    throw new Refused('a fingerprint or digest is not 64 hexadecimal digits')
  }
  const names = [fingerprint, module.slice(0, 2), module]
  const end = `/${names.join('/')}/artifact`
  const directory = named.path.slice(0, -end.length)
  if (!named.path.endsWith(end) || path.resolve(directory) !== directory) {
    throw new Refused('the daemon named a path that is not one of a host store')
  }
  const folders = []
  try {
    // The directory itself may be a link; what lies in the store may not.
    folders.push(fs.openSync(directory, O_RDONLY | O_DIRECTORY))
    const owners = ownersOf(directory, fs.fstatSync(folders[0], { bigint: true }))
    for (const name of names) folders.push(openFolder(name, owners, folders.at(-1)))
    return openFile('artifact', owners, folders.at(-1), header)
  } catch (error) {
    if (error instanceof Refused || !error.syscall) throw error
    throw new Refused(error.message)
  } finally {
    for (const folder of folders) fs.closeSync(folder)
  }
}

/** Return whose files count in a store, whose own folder counts too. */
function ownersOf(directory, status) {
  const owners = new Set([0n, BigInt(process.geteuid())])
  if (!owners.has(status.uid) && onlyRootOr(status.uid, fs.realpathSync(directory), status)) {
    owners.add(status.uid)
  }
  checkOwner(owners, status, `the folder ${directory}`)
  return owners
}

/** Return whether nobody but root and the owner can put another folder into this one's place. */
function onlyRootOr(owner, directory, status) {
  const { dev, ino } = fs.statSync(directory, { bigint: true })
  if (dev !== status.dev || ino !== status.ino) return false
  for (let folder = path.dirname(directory); ; folder = path.dirname(folder)) {
    const { uid, mode } = fs.statSync(folder, { bigint: true })
    // A sticky folder does not help: anybody could have made the store in it.
    if ((uid !== 0n && uid !== owner) || mode & SHARED_WRITE) return false
    if (folder === path.dirname(folder)) return true
  }
}

function checkOwner(owners, status, what) {
  if (!owners.has(status.uid)) {
    throw new Refused(`${what} belongs to the user ${status.uid}, who is not trusted`)
  }
  if (status.mode & SHARED_WRITE) {
    throw new Refused(`users other than the owner can write to ${what}`)
  }
}

function openIn(parent, name, flags) {
  // Node has no openat: through this link, Linux opens relative to the descriptor.
  return fs.openSync(`/proc/self/fd/${parent}/${name}`, O_RDONLY | O_NOFOLLOW | flags)
}

function openFolder(name, owners, parent) {
  const folder = openIn(parent, name, O_DIRECTORY)
  return closedOnFailure(folder, () => {
    checkOwner(owners, fs.fstatSync(folder, { bigint: true }), `the folder ${name}`)
    return folder
  })
}

function openFile(name, owners, parent, header) {
  // A pipe in place of a file must not make the caller wait.
  const descriptor = openIn(parent, name, O_NONBLOCK)
  return closedOnFailure(descriptor, () => {
    const status = fs.fstatSync(descriptor, { bigint: true })
    if (!status.isFile()) throw new Refused(`${name} is not a regular file`)
    if (status.nlink !== 1n) throw new Refused(`${name} has ${status.nlink} names`)
    checkOwner(owners, status, `the file ${name}`)
    if (status.size !== BigInt(header.sizeBytes) || status.size === 0n) {
      throw new Refused('the artifact does not have the size that its header says')
    }
    const { device, inode } = header.hostFile
    if (String(status.dev) !== device || String(status.ino) !== inode) {
      throw new Refused("the path leads to another file here than the daemon's")
    }
    return { descriptor, status }
  })
}

function closedOnFailure(descriptor, check) {
  try {
    return check()
  } catch (error) {
    fs.closeSync(descriptor)
    throw error
  }
}

/** Throw Refused when the file was written to since it was opened. */
function checkUnchanged({ descriptor, status }) {
  const now = fs.fstatSync(descriptor, { bigint: true })
  if (['size', 'mtimeNs', 'ctimeNs'].some((name) => now[name] !== status[name])) {
    throw new Refused('the file changed after it was opened')
  }
}

/** Return whether the file changed so recently that it may change without a trace in its times. */
function isRacy({ status }) {
  const changed = status.mtimeNs > status.ctimeNs ? status.mtimeNs : status.ctimeNs
  return BigInt(Date.now()) * 1_000_000n - changed < 1_000_000_000n
}

module.exports = { Refused, openHostFile, checkUnchanged, isRacy }
