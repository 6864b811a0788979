/// <reference types="node" />

import type { KeyObject } from 'node:crypto'

/** PEM, or the path of a file with it. */
export type Pem = string | Uint8Array | URL

export interface TlsOptions {
  /** The CAs of the daemon's certificate; without them those that Node trusts. */
  ca?: Pem
  /** This client's own certificate, and its key. */
  cert?: Pem
  key?: Pem
  /** The name in the daemon's certificate, where it is another than the address has. */
  serverName?: string
}

export interface ClientOptions {
  /** Off unless given. `true` trusts the CAs that Node trusts. */
  tls?: TlsOptions | boolean
  /** Says who calls. */
  token?: string
  /** The same in a file, which is read for each call. */
  tokenFile?: string | URL
  /**
   * Ed25519 public keys of daemons: files, or the keys in hex, base64, PEM or as 32 bytes. With
   * them, each artifact has to be signed by one of them. Without them only digests are checked.
   */
  trustedKeys?: TrustedKey | TrustedKey[]
  /** For each call; 60,000 unless given. */
  timeoutMs?: number
  /** Whether to take artifacts as files that a daemon of this machine keeps. On unless false. */
  hostStore?: boolean
  /** Larger artifacts are refused; 1 GiB unless given. */
  maxArtifactBytes?: number
}

export type TrustedKey = string | URL | Uint8Array | KeyObject

export interface CallOptions {
  timeoutMs?: number
  /** Ends the call; it is then rejected with the signal's reason. */
  signal?: AbortSignal
  /** 'background' waits behind all calls without it. */
  priority?: 'interactive' | 'background'
}

export interface LoadOptions extends CallOptions {
  /** The engine that validates: an id such as 'wasmtime-50.0.1', or a name. */
  engine?: string
  expectedSha256?: string
}

export interface CompileOptions extends CallOptions {
  /** An id such as 'wasmtime-50.0.1', or a name for its newest version. */
  engine?: string
  target?: string
  cpu?: string
  settings?: Record<string, string>
  /** Compile even when the daemon has the artifact. */
  skipCacheLookup?: boolean
}

export interface Engine {
  id: string
  name: string
  version: string
  coreVersion: string
  compiler: string
}

export interface ExternType {
  name: string
  kind: 'function' | 'global' | 'table' | 'memory' | 'tag' | 'other' | 'unspecified'
  /** The engine's own description. */
  type: string
}

/** An artifact, whose every field was compared with the call. */
export class Artifact {
  private constructor()
  readonly moduleSha256: string
  readonly artifactSha256: string
  readonly sizeBytes: number
  readonly engine: Engine
  readonly target: string
  readonly cpu: string
  /** Every setting of the engine with the value in force. */
  readonly settings: Record<string, string>
  /** The settings that a host has to apply to load the artifact. */
  readonly changedSettings: Record<string, string>
  readonly fingerprint: string
  readonly origin: 'compiled' | 'memory' | 'host_store' | 'redis' | 'joined_flight' | 'unspecified'
  readonly kind: 'core' | 'component'
  /** Up to 1,000 imports and exports in all. */
  readonly imports: (ExternType & { module: string })[]
  readonly exports: ExternType[]
  readonly compileTimeMs: number
  readonly queueTimeMs: number
  /** The DSSE envelope; empty where the daemon does not sign. */
  readonly attestation: Buffer
  /** The file in the host store, to show it; undefined where the daemon sent bytes. */
  readonly hostFile?: string
  /**
   * What to give to an engine that maps files: a path to the open file that was checked, valid in
   * this process until close(). Undefined where there are bytes only.
   */
  readonly path?: string
  /** The artifact's bytes; read from the file at first use where there is one. */
  readonly bytes: Buffer
  /** Throw unless the file is as it was when it was opened. Call it after an engine mapped it. */
  checkUnchanged(): void
  /** Close the file. An engine keeps what it has mapped. May be called twice. */
  close(): void
}

export interface Loaded {
  sha256: string
  sizeBytes: number
  alreadyLoaded: boolean
  artifacts: {
    engine: string
    fingerprint: string
    target: string
    cpu: string
    sizeBytes: number
    settings: Record<string, string>
  }[]
  kind: 'core' | 'component'
  engine: string
}

/**
 * A client of one daemon, or of several behind one address. Keep one and use it for all calls.
 *
 * Every method rejects with a WasmkilnError. It does not retry: `retryAfterMs` says when to.
 */
export class Client {
  /** `address` is host:port, unix:/path, or any target of gRPC. */
  constructor(address: string, options?: ClientOptions)
  /** Return the artifact of a module: ask by its digest, and upload it if the daemon lacks it. */
  compile(module: Uint8Array | ArrayBuffer, options?: CompileOptions): Promise<Artifact>
  /** The same for a module that the daemon has; rejects with ModuleNotLoaded if it has not. */
  compileDigest(moduleSha256: string, options?: CompileOptions): Promise<Artifact>
  /** Validate a module and store it, so that it can be compiled by its digest. */
  load(module: Uint8Array | ArrayBuffer, options?: LoadOptions): Promise<Loaded>
  /** StatsResponse as module_service.proto describes it, with names in camelCase. */
  stats(options?: CallOptions): Promise<Record<string, any>>
  /** GetCapabilitiesResponse as module_service.proto describes it, with names in camelCase. */
  capabilities(options?: CallOptions): Promise<Record<string, any>>
  /** Close the connection. Running calls end with an error. */
  close(): void
}

/** The base of every failure of a call. Decide by `reason` or by the subclass. */
export class WasmkilnError extends Error {
  constructor(message: string, details?: Partial<Omit<WasmkilnError, keyof Error>>)
  /** The gRPC status code, as a number. */
  readonly code: number
  /** The contract's word for the condition; '' where there is none. */
  readonly reason: string
  readonly metadata: Record<string, string>
  /** How long to wait before another try; undefined where the daemon did not say. */
  readonly retryAfterMs?: number
  readonly fieldViolations: { field: string; description: string }[]
  /** What the daemon's log calls this call; '' where no call was made. */
  readonly requestId: string
}

/** ARTIFACT_MISMATCH */
export class ArtifactMismatch extends WasmkilnError {}
/** ARTIFACT_TOO_LARGE */
export class ArtifactTooLarge extends WasmkilnError {}
/** ATTESTATION_INVALID */
export class AttestationInvalid extends WasmkilnError {}
/** COMPILE_MEMORY_LIMIT */
export class CompileMemoryLimit extends WasmkilnError {}
/** COMPILE_QUEUE_FULL */
export class QueueFull extends WasmkilnError {}
/** COMPILE_TIMEOUT */
export class CompileTimeout extends WasmkilnError {}
/** COMPILER_CRASHED */
export class CompilerCrashed extends WasmkilnError {}
/** CONNECTION_FAILED */
export class ConnectionFailed extends WasmkilnError {}
/** CREDENTIALS_INVALID */
export class CredentialsInvalid extends WasmkilnError {}
/** CREDENTIALS_MISSING */
export class CredentialsMissing extends WasmkilnError {}
/** DEADLINE_EXCEEDED */
export class DeadlineExceeded extends WasmkilnError {}
/** DIGEST_MISMATCH */
export class DigestMismatch extends WasmkilnError {}
/** ENGINE_LACKS_FEATURE */
export class EngineLacksFeature extends WasmkilnError {}
/** ENGINE_REMOVED */
export class EngineRemoved extends WasmkilnError {}
/** ENGINE_UNKNOWN */
export class EngineUnknown extends WasmkilnError {}
/** INTERNAL */
export class InternalFailure extends WasmkilnError {}
/** INVALID_REQUEST */
export class InvalidRequest extends WasmkilnError {}
/** MODULE_INVALID */
export class ModuleInvalid extends WasmkilnError {}
/** MODULE_NOT_LOADED */
export class ModuleNotLoaded extends WasmkilnError {}
/** MODULE_QUARANTINED */
export class ModuleQuarantined extends WasmkilnError {}
/** MODULE_TOO_LARGE */
export class ModuleTooLarge extends WasmkilnError {}
/** NOT_WASM */
export class NotWasm extends WasmkilnError {}
/** QUOTA_EXCEEDED */
export class QuotaExceeded extends WasmkilnError {}
/** ROLE_MISSING */
export class RoleMissing extends WasmkilnError {}
/** SERVER_DRAINING */
export class ServerDraining extends WasmkilnError {}
/** SETTING_UNKNOWN */
export class SettingUnknown extends WasmkilnError {}
/** TARGET_UNSUPPORTED */
export class TargetUnsupported extends WasmkilnError {}
/** UNEXPECTED_ANSWER */
export class UnexpectedAnswer extends WasmkilnError {}
/** WORKER_UNAVAILABLE */
export class WorkerUnavailable extends WasmkilnError {}
