// Compiled by tsc, and never run: what callers write has the types that they expect.

import { readFileSync } from 'node:fs'
import { Artifact, Client, CompileQueueFull, WasmkilnError } from 'wasmkiln'

const kiln = new Client('127.0.0.1:50051', {
  tls: { ca: 'ca.pem' },
  tokenFile: 'ci.token',
  trustedKeys: ['key.pem', new URL('file:///keys/trusted')],
})

export async function compiled(path: string, signal: AbortSignal): Promise<Buffer> {
  try {
    const artifact: Artifact = await kiln.compile(readFileSync(path), { engine: 'wasmtime', signal })
    const mapped: string | undefined = artifact.path
    return mapped === undefined ? artifact.bytes : readFileSync(mapped)
  } catch (error) {
    if (error instanceof CompileQueueFull) console.log(error.retryAfterMs?.toFixed())
    if (error instanceof WasmkilnError) console.log(error.reason, error.metadata['engine'])
    throw error
  }
}

// @ts-expect-error a setting is a text
void kiln.compileDigest('0'.repeat(64), { settings: { consume_fuel: true } })
