'use strict'
// Copies into the package what the repository has once for all languages, while npm packs it.

const fs = require('node:fs')
const path = require('node:path')

const package_ = path.join(__dirname, '..')
const repository = path.join(package_, '..', '..')
const protos = path.join(package_, 'protos')
const license = path.join(package_, 'LICENSE')

fs.rmSync(protos, { recursive: true, force: true })
fs.rmSync(license, { force: true })
if (process.argv[2] === 'copy') {
  const isWanted = (file) => fs.statSync(file).isDirectory() || file.endsWith('.proto')
  fs.cpSync(path.join(repository, 'protos'), protos, { recursive: true, filter: isWanted })
  fs.copyFileSync(path.join(repository, 'LICENSE'), license)
}
