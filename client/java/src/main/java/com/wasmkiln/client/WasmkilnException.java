package com.wasmkiln.client;

import io.grpc.Status;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * Every failure of a call. Decide by its class, or by {@link #reason()} for reasons that have no
 * class of their own.
 */
public class WasmkilnException extends RuntimeException {
  private static final long serialVersionUID = 1L;

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
      case "MODULE_INVALID" -> new ModuleInvalid(message, details, cause);
      case "NOT_WASM" -> new NotWasm(message, details, cause);
      case "MODULE_NOT_LOADED" -> new ModuleNotLoaded(message, details, cause);
      case "MODULE_QUARANTINED" -> new ModuleQuarantined(message, details, cause);
      case "ENGINE_UNKNOWN" -> new EngineUnknown(message, details, cause);
      case "ENGINE_LACKS_FEATURE" -> new EngineLacksFeature(message, details, cause);
      case "COMPILE_TIMEOUT" -> new CompileTimeout(message, details, cause);
      case "COMPILE_QUEUE_FULL" -> new QueueFull(message, details, cause);
      case "QUOTA_EXCEEDED" -> new QuotaExceeded(message, details, cause);
      case "CREDENTIALS_MISSING" -> new CredentialsMissing(message, details, cause);
      case "CREDENTIALS_INVALID" -> new CredentialsInvalid(message, details, cause);
      case "ROLE_MISSING" -> new RoleMissing(message, details, cause);
      case "CONNECTION_FAILED" -> new ConnectionFailed(message, details, cause);
      case "DEADLINE_EXCEEDED" -> new DeadlineExceeded(message, details, cause);
      case "ARTIFACT_MISMATCH" -> new ArtifactMismatch(message, details, cause);
      case "ATTESTATION_INVALID" -> new AttestationInvalid(message, details, cause);
      default -> new WasmkilnException(message, details, cause);
    };
  }

  /** Return the exception for something that the client itself refuses. */
  static WasmkilnException own(
      Status.Code code, String reason, String message, Map<String, String> metadata) {
    return of(message, new Details(code, reason, metadata, null, "", List.of()), null);
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

  /** The module is malformed or invalid: MODULE_INVALID. */
  public static final class ModuleInvalid extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    ModuleInvalid(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The bytes are no WebAssembly binary: NOT_WASM. */
  public static final class NotWasm extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    NotWasm(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** No tier of the daemon has a module with this digest: MODULE_NOT_LOADED. */
  public static final class ModuleNotLoaded extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    ModuleNotLoaded(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The module broke this engine not long ago: MODULE_QUARANTINED. */
  public static final class ModuleQuarantined extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    ModuleQuarantined(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon serves no such engine: ENGINE_UNKNOWN. */
  public static final class EngineUnknown extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    EngineUnknown(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The engine lacks what the module needs: ENGINE_LACKS_FEATURE. */
  public static final class EngineLacksFeature extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    EngineLacksFeature(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** Compiling took longer than the daemon allows: COMPILE_TIMEOUT. */
  public static final class CompileTimeout extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    CompileTimeout(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon is at a limit that protects other callers: COMPILE_QUEUE_FULL. */
  public static final class QueueFull extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    QueueFull(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The caller has used up a quota: QUOTA_EXCEEDED. */
  public static final class QuotaExceeded extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    QuotaExceeded(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The daemon asks who calls: CREDENTIALS_MISSING. */
  public static final class CredentialsMissing extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    CredentialsMissing(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The token or certificate does not count: CREDENTIALS_INVALID. */
  public static final class CredentialsInvalid extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    CredentialsInvalid(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The caller may not do this: ROLE_MISSING. */
  public static final class RoleMissing extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    RoleMissing(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** No daemon answers at the address, or TLS fails: CONNECTION_FAILED. */
  public static final class ConnectionFailed extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    ConnectionFailed(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** No answer came within the call's own time: DEADLINE_EXCEEDED. */
  public static final class DeadlineExceeded extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    DeadlineExceeded(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /** The bytes differ from their header, or the header from the call: ARTIFACT_MISMATCH. */
  public static final class ArtifactMismatch extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    ArtifactMismatch(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }

  /**
   * No trusted key signed the artifact: ATTESTATION_INVALID. The cause in the metadata is
   * "unsigned", "stranger" or "mismatch".
   */
  public static final class AttestationInvalid extends WasmkilnException {
    private static final long serialVersionUID = 1L;

    AttestationInvalid(String message, Details details, Throwable cause) {
      super(message, details, cause);
    }
  }
}
