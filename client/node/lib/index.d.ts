/// <reference types="node" />

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
   * Ed25519 public keys of daemons: PEM, or files or folders of it. With
   * them, each artifact has to be signed by one of them, and keys in the folder `revoked/` of a
   * folder do not count. Without them only digests are checked.
   */
  trustedKeys?: string | URL | (string | URL)[]
  /** For each call; 60,000 unless given. */
  timeoutMs?: number
  /** Whether to take artifacts as files that a daemon of this machine keeps. On unless false. */
  hostStore?: boolean
  /** Larger artifacts are refused; 1 GiB unless given. */
  maxArtifactBytes?: number
}

export interface CallOptions {
  timeoutMs?: number
  /** Ends the call; it is then rejected with the signal's reason. */
  signal?: AbortSignal
  /** Wait behind all calls without it. */
  background?: boolean
  /** The name of `background` before 0.7. */
  priority?: 'interactive' | 'background'
}

export interface CompileOptions extends CallOptions {
  /** An id such as 'wasmtime-50.0.1', or a name for its newest version. */
  engine?: string
  target?: string
  cpu?: string
  settings?: Record<string, string>
  /**
   * Anything that the host's own wasmtime compiled, such as a .cwasm file that it loads, or the
   * section `.wasmtime.engine` of it. The daemon then chooses code that this engine loads: leave
   * out engine, target, cpu and settings.
   */
  compatibility?: Uint8Array
  /** Compile even if a tier has the artifact. */
  skipCacheLookup?: boolean
  /** Take the code of a fast compiler until the daemon has optimised code: see `isFast`. */
  acceptFast?: boolean
}

/** An artifact to look for; what is left out is the daemon's default. */
export interface ArtifactKey {
  moduleSha256: string
  engine?: string
  target?: string
  cpu?: string
  settings?: Record<string, string>
  /** A section `.wasmtime.engine`, or its SHA-256 (32 bytes), in place of all these. */
  compatibility?: Uint8Array
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

/** An artifact that is what the call asked for. */
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
  readonly origin: 'compiled' | 'memory' | 'host_store' | 'redis' | 'object_store' | 'joined_flight' | 'unspecified'
  readonly kind: 'core' | 'component'
  /** Whether a fast compiler made it. A later call with `acceptFast` may get optimised code. */
  readonly isFast: boolean
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
  /** The artifact's bytes; read from the file where there is one. */
  readonly bytes: Buffer
  /** Throw unless the file is as it was when it was opened. Call it after an engine mapped it. */
  checkUnchanged(): void
  /** Close the file. An engine keeps what it has mapped. May be called twice. */
  close(): void
}

/** A message as module_service.proto describes it, with names in camelCase. */
export type Answer = Record<string, any>

/**
 * A client of one daemon, or of several behind one address. Keep one and use it for all calls.
 *
 * Every method rejects with a WasmkilnError. Calls for code are retried until `timeoutMs` is over:
 * docs/reference/api.md says when. A download or an upload continues where it was cut.
 */
export class Client {
  /** `address` is host:port, unix:/path, or any target of gRPC. */
  constructor(address: string, options?: ClientOptions)
  /** Return the artifact of a module: ask by its digest, and upload it if the daemon lacks it. */
  compile(module: Uint8Array, options?: CompileOptions): Promise<Artifact>
  /** The same for a module that the daemon has; rejects with ModuleNotLoaded if it has not. */
  compileDigest(moduleSha256: string, options?: CompileOptions): Promise<Artifact>
  /** Validate a module and store it, so that it can be compiled by its digest: LoadResponse. */
  load(module: Uint8Array, options?: CompileOptions): Promise<Answer>
  /** Return the keys whose artifacts no tier has, in their order; a digest is a key. */
  findMissing(keys: (ArtifactKey | string)[], options?: CallOptions): Promise<Answer[]>
  /** What the daemon counts: StatsResponse. */
  stats(options?: CallOptions): Promise<Answer>
  /** Engines, targets, settings, limits, and who the caller is: GetCapabilitiesResponse. */
  capabilities(options?: CallOptions): Promise<Answer>
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

/** The class of one reason: `error instanceof CompileQueueFull`. */
type Kind = typeof WasmkilnError
export const InvalidRequest: Kind, NotWasm: Kind, ModuleInvalid: Kind, ModuleTooLarge: Kind
export const DigestMismatch: Kind, UploadInterrupted: Kind, EngineUnknown: Kind, EngineRemoved: Kind
export const TargetUnsupported: Kind, SettingUnknown: Kind, EngineLacksFeature: Kind
export const CompatibilityUnknown: Kind, CompatibilityUnsupported: Kind
export const CredentialsMissing: Kind, CredentialsInvalid: Kind, RoleMissing: Kind
export const ModuleNotLoaded: Kind, CompileTimeout: Kind, CompileMemoryLimit: Kind
export const ArtifactTooLarge: Kind, CompilerCrashed: Kind, InternalFailure: Kind
export const JobEnded: Kind, ModuleQuarantined: Kind, CompileQueueFull: Kind, QuotaExceeded: Kind
/** The name of CompileQueueFull before 0.7. */
export const QueueFull: Kind
export const WorkerUnavailable: Kind, ServerDraining: Kind
// The client's own.
export const ConnectionFailed: Kind, DeadlineExceeded: Kind, ArtifactMismatch: Kind
export const AttestationInvalid: Kind, UnexpectedAnswer: Kind
