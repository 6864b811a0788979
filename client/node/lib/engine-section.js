'use strict'
// What a wasmtime engine says of itself, in a section of everything that it compiles.

const NAME = Buffer.from('.wasmtime.engine\0')

/** Return the section of what wasmtime compiled; a section as it is. Throw for anything else. */
function sectionOf(compiled) {
  if (!(compiled instanceof Uint8Array)) throw new TypeError('compatibility is a Uint8Array')
  const bytes = Buffer.from(compiled.buffer, compiled.byteOffset, compiled.length)
  const start = bytes.toString('latin1', 0, 5)
  if (start[0] === '\0' && !start.startsWith('\0asm')) return bytes
  const found = start === '\x7fELF\x02' && sectionIn(bytes)
  if (found?.length) return found
  throw new Error('cannot use compatibility: these bytes are nothing that wasmtime compiled')
}

/** Return the section of a 64-bit ELF file; undefined if it has none, or is damaged. */
function sectionIn(bytes) {
  const number = (at) => Number(bytes.readBigUInt64LE(at))
  const rowOf = (index) => number(0x28) + index * bytes.readUInt16LE(0x3a)
  try {
    const names = number(rowOf(bytes.readUInt16LE(0x3e)) + 0x18)
    for (let index = 0; index < bytes.readUInt16LE(0x3c); index++) {
      const name = names + bytes.readUInt32LE(rowOf(index))
      if (!bytes.subarray(name, name + NAME.length).equals(NAME)) continue
      const [from, size] = [0x18, 0x20].map((at) => number(rowOf(index) + at))
      return from + size <= bytes.length ? bytes.subarray(from, from + size) : undefined
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
  }
}

module.exports = { sectionOf }
