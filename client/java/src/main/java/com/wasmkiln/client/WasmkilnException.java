package com.wasmkiln.client;

import io.grpc.Status;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Every failure of a call. Decide by its class, which each reason has, or by {@link #reason()},
 * which may be one of a newer daemon.
 */
@SuppressWarnings("serial")
public class WasmkilnException extends RuntimeException {
  private static final int MAX_QUOTED = 200;

  private final transient Details details;

  /** What an error says beside its message. */
  record Details(
      Status.Code code,
      String reason,
      Map<String, String> metadata,
      Duration retryAfter,
      String requestId,
      List<FieldViolation> violations) {}

  /** A field of the request that the daemon refused, and why. */
  public record FieldViolation(String field, String description) {}

  WasmkilnException(String message, Details details, Throwable cause) {
    super(message, cause);
    this.details = details;
  }

  /** The gRPC status code. */
  public Status.Code code() {
    return details.code();
  }

  /** The contract's word for the condition, or an empty string where there is none. */
  public String reason() {
    return details.reason();
  }

  /** What the contract lists for the reason. */
  public Map<String, String> metadata() {
    return details.metadata();
  }

  /** How long to wait before another try; empty where the daemon did not say. */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(details.retryAfter());
  }

  /** Names the call in the daemon's log; empty where the client itself refused something. */
  public String requestId() {
    return details.requestId();
  }

  /** The fields of the request that the daemon refused. */
  public List<FieldViolation> violations() {
    return details.violations();
  }

  /** Return the exception of a reason. */
  static WasmkilnException of(String message, Details details, Throwable cause) {
    return switch (details.reason()) {
      case "INVALID_REQUEST" -> new InvalidRequest(message, details, cause);
      case "MODULE_INVALID" -> new ModuleInvalid(message, details, cause);
      case "NOT_WASM" -> new NotWasm(message, details, cause);
      case "MODULE_TOO_LARGE" -> new ModuleTooLarge(message, details, cause);
      case "DIGEST_MISMATCH" -> new DigestMismatch(message, details, cause);
      case "MODULE_NOT_LOADED" -> new ModuleNotLoaded(message, details, cause);
      case "MODULE_QUARANTINED" -> new ModuleQuarantined(message, details, cause);
      case "ENGINE_UNKNOWN" -> new EngineUnknown(message, details, cause);
      case "ENGINE_REMOVED" -> new EngineRemoved(message, details, cause);
      case "TARGET_UNSUPPORTED" -> new TargetUnsupported(message, details, cause);
      case "SETTING_UNKNOWN" -> new SettingUnknown(message, details, cause);
      case "ENGINE_LACKS_FEATURE" -> new EngineLacksFeature(message, details, cause);
      case "COMPILE_TIMEOUT" -> new CompileTimeout(message, details, cause);
      case "COMPILE_MEMORY_LIMIT" -> new CompileMemoryLimit(message, details, cause);
      case "ARTIFACT_TOO_LARGE" -> new ArtifactTooLarge(message, details, cause);
      case "COMPILER_CRASHED" -> new CompilerCrashed(message, details, cause);
      case "INTERNAL" -> new InternalFailure(message, details, cause);
      case "COMPILE_QUEUE_FULL" -> new QueueFull(message, details, cause);
      case "QUOTA_EXCEEDED" -> new QuotaExceeded(message, details, cause);
      case "WORKER_UNAVAILABLE" -> new WorkerUnavailable(message, details, cause);
      case "SERVER_DRAINING" -> new ServerDraining(message, details, cause);
      case "CREDENTIALS_MISSING" -> new CredentialsMissing(message, details, cause);
      case "CREDENTIALS_INVALID" -> new CredentialsInvalid(message, details, cause);
      case "ROLE_MISSING" -> new RoleMissing(message, details, cause);
      case "CONNECTION_FAILED" -> new ConnectionFailed(message, details, cause);
      case "DEADLINE_EXCEEDED" -> new DeadlineExceeded(message, details, cause);
      case "ARTIFACT_MISMATCH" -> new ArtifactMismatch(message, details, cause);
      case "ATTESTATION_INVALID" -> new AttestationInvalid(message, details, cause);
      case "UNEXPECTED_ANSWER" -> new UnexpectedAnswer(message, details, cause);
      default -> new WasmkilnException(message, details, cause);
    };
  }

  /** Return the exception for something that the client itself refuses. */
  static WasmkilnException own(
      Status.Code code, String reason, String message, Map<String, String> metadata) {
    return of(message, new Details(code, reason, metadata, null, "", List.of()), null);
  }

  /** Return the same exception with a request's id, if it has none. */
  WasmkilnException ofRequest(String requestId) {
    if (!requestId().isEmpty()) {
      return this;
    }
    return of(
        getMessage(),
        new Details(code(), reason(), metadata(), details.retryAfter(), requestId, violations()),
        getCause());
  }

  /** Return the exception for an artifact that is not what was asked for. Quote what it names. */
  static WasmkilnException mismatch(String format, Object... values) {
    Object[] quoted =
        Arrays.stream(values).map(each -> each instanceof String text ? quoted(text) : each).toArray();
    return own(Status.Code.DATA_LOSS, "ARTIFACT_MISMATCH", String.format(format, quoted), Map.of());
  }

  /** Return a text that a server chose as part of one printable line: in quotes, and not long. */
  static String quoted(String text) {
    StringBuilder line = new StringBuilder("\"");
    text.codePoints()
        .limit(MAX_QUOTED)
        .forEach(
            each -> {
              if (isPrintable(each)) {
                line.appendCodePoint(each);
              } else {
                line.append(String.format("\\u{%x}", each));
              }
            });
    return line.append(text.codePointCount(0, text.length()) > MAX_QUOTED ? "…\"" : "\"").toString();
  }

  private static boolean isPrintable(int point) {
    return switch (Character.getType(point)) {
      case Character.CONTROL, Character.FORMAT, Character.SURROGATE, Character.PRIVATE_USE,
          Character.UNASSIGNED, Character.LINE_SEPARATOR, Character.PARAGRAPH_SEPARATOR -> false;
      default -> true;
    };
  }

  /** Return the exception for an artifact that no trusted key signed. */
  static WasmkilnException untrusted(String cause, String keyId, String message) {
    Map<String, String> metadata =
        keyId.isEmpty() ? Map.of("cause", cause) : Map.of("cause", cause, "key_id", keyId);
    return own(Status.Code.DATA_LOSS, "ATTESTATION_INVALID", message, metadata);
  }

  /** The request breaks a rule of the contract: INVALID_REQUEST. */
  public static final class InvalidRequest extends WasmkilnException {
    InvalidRequest(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The module is malformed or invalid: MODULE_INVALID. */
  public static final class ModuleInvalid extends WasmkilnException {
    ModuleInvalid(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The bytes are no WebAssembly binary: NOT_WASM. */
  public static final class NotWasm extends WasmkilnException {
    NotWasm(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The module is larger than the daemon accepts: MODULE_TOO_LARGE. */
  public static final class ModuleTooLarge extends WasmkilnException {
    ModuleTooLarge(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The bytes are not those of the digest: DIGEST_MISMATCH. */
  public static final class DigestMismatch extends WasmkilnException {
    DigestMismatch(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** No tier of the daemon has a module with this digest: MODULE_NOT_LOADED. */
  public static final class ModuleNotLoaded extends WasmkilnException {
    ModuleNotLoaded(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The module broke this engine not long ago: MODULE_QUARANTINED. */
  public static final class ModuleQuarantined extends WasmkilnException {
    ModuleQuarantined(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon serves no such engine: ENGINE_UNKNOWN. */
  public static final class EngineUnknown extends WasmkilnException {
    EngineUnknown(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon served this engine until it was removed: ENGINE_REMOVED. */
  public static final class EngineRemoved extends WasmkilnException {
    EngineRemoved(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The engine does not compile for this target: TARGET_UNSUPPORTED. */
  public static final class TargetUnsupported extends WasmkilnException {
    TargetUnsupported(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The engine has no such setting: SETTING_UNKNOWN. */
  public static final class SettingUnknown extends WasmkilnException {
    SettingUnknown(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The engine lacks what the module needs: ENGINE_LACKS_FEATURE. */
  public static final class EngineLacksFeature extends WasmkilnException {
    EngineLacksFeature(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** Compiling took longer than the daemon allows: COMPILE_TIMEOUT. */
  public static final class CompileTimeout extends WasmkilnException {
    CompileTimeout(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** Compiling took more memory than the daemon allows: COMPILE_MEMORY_LIMIT. */
  public static final class CompileMemoryLimit extends WasmkilnException {
    CompileMemoryLimit(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The artifact is above a limit of the daemon or of this client: ARTIFACT_TOO_LARGE. */
  public static final class ArtifactTooLarge extends WasmkilnException {
    ArtifactTooLarge(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The engine crashed on this module: COMPILER_CRASHED. */
  public static final class CompilerCrashed extends WasmkilnException {
    CompilerCrashed(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon failed, and its log says why: INTERNAL. */
  public static final class InternalFailure extends WasmkilnException {
    InternalFailure(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon is at a limit that protects other callers: COMPILE_QUEUE_FULL. */
  public static final class QueueFull extends WasmkilnException {
    QueueFull(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The caller has used up a quota: QUOTA_EXCEEDED. */
  public static final class QuotaExceeded extends WasmkilnException {
    QuotaExceeded(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** No worker of the engine is ready: WORKER_UNAVAILABLE. */
  public static final class WorkerUnavailable extends WasmkilnException {
    WorkerUnavailable(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon is about to end: ask another: SERVER_DRAINING. */
  public static final class ServerDraining extends WasmkilnException {
    ServerDraining(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon asks who calls: CREDENTIALS_MISSING. */
  public static final class CredentialsMissing extends WasmkilnException {
    CredentialsMissing(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The token or certificate does not count: CREDENTIALS_INVALID. */
  public static final class CredentialsInvalid extends WasmkilnException {
    CredentialsInvalid(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The caller may not do this: ROLE_MISSING. */
  public static final class RoleMissing extends WasmkilnException {
    RoleMissing(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** No daemon answers at the address, or TLS fails: CONNECTION_FAILED. */
  public static final class ConnectionFailed extends WasmkilnException {
    ConnectionFailed(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** No answer came within the call's own time: DEADLINE_EXCEEDED. */
  public static final class DeadlineExceeded extends WasmkilnException {
    DeadlineExceeded(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The bytes differ from their header, or the header from the call: ARTIFACT_MISMATCH. */
  public static final class ArtifactMismatch extends WasmkilnException {
    ArtifactMismatch(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /**
   * No trusted key signed the artifact: ATTESTATION_INVALID. The cause in the metadata is
   * "unsigned", "stranger" or "mismatch".
   */
  public static final class AttestationInvalid extends WasmkilnException {
    AttestationInvalid(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon's answer is about something else: UNEXPECTED_ANSWER. */
  public static final class UnexpectedAnswer extends WasmkilnException {
    UnexpectedAnswer(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }
}
