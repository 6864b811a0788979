'use strict'
// Texts that came from a daemon, made fit to be shown.

/** Return a name or value as part of a sentence: one printable line of 200 characters at most. */
function quoted(value) {
  const text = String(value)
  // Control characters could steer a terminal.
  const line = text
    .slice(0, 800)
    .split(/\s+/)
    .join(' ')
    .replace(/[\p{C}\u2028\u2029]/gu, (one) => `\\u{${one.codePointAt(0).toString(16)}}`)
  return line.length > 200 || text.length > 800 ? `${line.slice(0, 200)}…` : line
}

module.exports = { quoted }
