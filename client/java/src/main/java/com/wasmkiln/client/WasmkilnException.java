package com.wasmkiln.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.*;
import java.time.Duration;
import java.util.*;

/**
 * Every failure of a call. Decide by its class, which each reason has, or by {@link #reason()},
 * which may be one of a newer daemon.
 */
@SuppressWarnings("serial")
public class WasmkilnException extends RuntimeException {
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
  private static final long MAX_RETRY_SECONDS = Duration.ofDays(365).toSeconds();

  private String message = "";
  private Status.Code code = Status.Code.UNKNOWN;
  private String reason = "";
  private Map<String, String> metadata = Map.of();
  private Duration retryAfter;
  private String requestId = "";
  private transient List<FieldViolation> violations = List.of();

  private WasmkilnException() {}

  /** A field of the request that the daemon refused, and why. */
  public record FieldViolation(String field, String description) {}

  @Override
  public String getMessage() {
    return message;
  }

  /** The gRPC status code. */
  public Status.Code code() {
    return code;
  }

  /** The contract's word for the condition, or an empty string where there is none. */
  public String reason() {
    return reason;
  }

  /** What the contract lists for the reason. */
  public Map<String, String> metadata() {
    return metadata;
  }

  /** How long to wait before another try; empty where the daemon did not say. */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(retryAfter);
  }

  /** Names the call in the daemon's log. */
  public String requestId() {
    return requestId;
  }

  /** The fields of the request that the daemon refused. */
  public List<FieldViolation> violations() {
    return violations;
  }

  /** Return the exception of a reason. */
  static WasmkilnException of(
      Status.Code code, String reason, String message, Map<String, String> metadata) {
    WasmkilnException made =
        switch (reason) {
          case "INVALID_REQUEST" -> new InvalidRequest();
          case "MODULE_INVALID" -> new ModuleInvalid();
          case "NOT_WASM" -> new NotWasm();
          case "MODULE_TOO_LARGE" -> new ModuleTooLarge();
          case "DIGEST_MISMATCH" -> new DigestMismatch();
          case "MODULE_NOT_LOADED" -> new ModuleNotLoaded();
          case "MODULE_QUARANTINED" -> new ModuleQuarantined();
          case "ENGINE_UNKNOWN" -> new EngineUnknown();
          case "ENGINE_REMOVED" -> new EngineRemoved();
          case "TARGET_UNSUPPORTED" -> new TargetUnsupported();
          case "SETTING_UNKNOWN" -> new SettingUnknown();
          case "ENGINE_LACKS_FEATURE" -> new EngineLacksFeature();
          case "COMPILE_TIMEOUT" -> new CompileTimeout();
          case "COMPILE_MEMORY_LIMIT" -> new CompileMemoryLimit();
          case "ARTIFACT_TOO_LARGE" -> new ArtifactTooLarge();
          case "COMPILER_CRASHED" -> new CompilerCrashed();
          case "INTERNAL" -> new InternalFailure();
          case "COMPILE_QUEUE_FULL" -> new QueueFull();
          case "QUOTA_EXCEEDED" -> new QuotaExceeded();
          case "WORKER_UNAVAILABLE" -> new WorkerUnavailable();
          case "SERVER_DRAINING" -> new ServerDraining();
          case "CREDENTIALS_MISSING" -> new CredentialsMissing();
          case "CREDENTIALS_INVALID" -> new CredentialsInvalid();
          case "ROLE_MISSING" -> new RoleMissing();
          case "CONNECTION_FAILED" -> new ConnectionFailed();
          case "DEADLINE_EXCEEDED" -> new DeadlineExceeded();
          case "ARTIFACT_MISMATCH" -> new ArtifactMismatch();
          case "ATTESTATION_INVALID" -> new AttestationInvalid();
          case "UNEXPECTED_ANSWER" -> new UnexpectedAnswer();
          default -> new WasmkilnException();
        };
    made.code = code;
    made.reason = reason;
    made.message = message;
    made.metadata = Map.copyOf(metadata);
    return made;
  }

  /** Return the exception for a call that failed. */
  static WasmkilnException of(StatusRuntimeException failure, String address, Duration timeout) {
    Status status = failure.getStatus();
    String text = status.getDescription() == null ? "" : status.getDescription();
    ErrorInfo info = ErrorInfo.getDefaultInstance();
    RetryInfo retry = RetryInfo.getDefaultInstance();
    BadRequest bad = BadRequest.getDefaultInstance();
    try {
      byte[] details = failure.getTrailers() == null ? null : failure.getTrailers().get(DETAILS);
      var parsed = com.google.rpc.Status.parseFrom(details == null ? new byte[0] : details);
      for (Any each : parsed.getDetailsList()) {
        if (each.is(ErrorInfo.class)) {
          info = each.unpack(ErrorInfo.class);
        } else if (each.is(RetryInfo.class)) {
          retry = each.unpack(RetryInfo.class);
        } else if (each.is(BadRequest.class)) {
          bad = each.unpack(BadRequest.class);
        }
      }
    } catch (InvalidProtocolBufferException damaged) {
      // Of another server, or cut off: code and message count in any case.
    }
    String reason = info.getDomain().equals("wasmkiln") ? info.getReason() : "";
    Map<String, String> metadata = info.getMetadataMap();
    if (reason.isEmpty()) {
      text = root(status.getCause(), text.lines().findFirst().orElse(""));
      metadata = Map.of("address", address, "detail", text);
      if (status.getCode() == Status.Code.UNAVAILABLE) {
        reason = "CONNECTION_FAILED";
        text = "no daemon answers at " + address + " (" + text + "): start one with `wasmkilnd"
            + " serve`, or check the address";
      } else if (status.getCode() == Status.Code.DEADLINE_EXCEEDED) {
        reason = "DEADLINE_EXCEEDED";
        text = "no answer from " + address + " within " + timeout.toMillis() + " ms";
      }
    }
    WasmkilnException made =
        of(status.getCode(), reason, text.isEmpty() ? status.getCode().name() : text, metadata);
    made.initCause(failure);
    if (retry.hasRetryDelay()) {
      long seconds = retry.getRetryDelay().getSeconds();
      made.retryAfter =
          Duration.ofSeconds(Math.max(0, Math.min(seconds, MAX_RETRY_SECONDS)))
              .plusNanos(Math.max(0, retry.getRetryDelay().getNanos()));
    }
    made.violations =
        bad.getFieldViolationsList().stream()
            .map(each -> new FieldViolation(each.getField(), each.getDescription()))
            .toList();
    return made;
  }

  /** Return this exception with a request's id. */
  WasmkilnException ofRequest(String id) {
    requestId = metadata.getOrDefault("request_id", id);
    return this;
  }

  private static String root(Throwable cause, String otherwise) {
    if (cause == null) {
      return otherwise;
    }
    return root(cause.getCause(), String.valueOf(cause.getMessage()));
  }

  /** The request breaks a rule of the contract: INVALID_REQUEST. */
  public static final class InvalidRequest extends WasmkilnException {}

  /** The module is malformed or invalid: MODULE_INVALID. */
  public static final class ModuleInvalid extends WasmkilnException {}

  /** The bytes are no WebAssembly binary: NOT_WASM. */
  public static final class NotWasm extends WasmkilnException {}

  /** The module is larger than the daemon accepts: MODULE_TOO_LARGE. */
  public static final class ModuleTooLarge extends WasmkilnException {}

  /** The bytes are not those of the digest: DIGEST_MISMATCH. */
  public static final class DigestMismatch extends WasmkilnException {}

  /** No tier of the daemon has a module with this digest: MODULE_NOT_LOADED. */
  public static final class ModuleNotLoaded extends WasmkilnException {}

  /** The module broke this engine not long ago: MODULE_QUARANTINED. */
  public static final class ModuleQuarantined extends WasmkilnException {}

  /** The daemon serves no such engine: ENGINE_UNKNOWN. */
  public static final class EngineUnknown extends WasmkilnException {}

  /** The daemon served this engine until it was removed: ENGINE_REMOVED. */
  public static final class EngineRemoved extends WasmkilnException {}

  /** The engine does not compile for this target: TARGET_UNSUPPORTED. */
  public static final class TargetUnsupported extends WasmkilnException {}

  /** The engine has no such setting: SETTING_UNKNOWN. */
  public static final class SettingUnknown extends WasmkilnException {}

  /** The engine lacks what the module needs: ENGINE_LACKS_FEATURE. */
  public static final class EngineLacksFeature extends WasmkilnException {}

  /** Compiling took longer than the daemon allows: COMPILE_TIMEOUT. */
  public static final class CompileTimeout extends WasmkilnException {}

  /** Compiling took more memory than the daemon allows: COMPILE_MEMORY_LIMIT. */
  public static final class CompileMemoryLimit extends WasmkilnException {}

  /** The artifact is above a limit of the daemon or of this client: ARTIFACT_TOO_LARGE. */
  public static final class ArtifactTooLarge extends WasmkilnException {}

  /** The engine crashed on this module: COMPILER_CRASHED. */
  public static final class CompilerCrashed extends WasmkilnException {}

  /** The daemon failed, and its log says why: INTERNAL. */
  public static final class InternalFailure extends WasmkilnException {}

  /** The daemon is at a limit that protects other callers: COMPILE_QUEUE_FULL. */
  public static final class QueueFull extends WasmkilnException {}

  /** The caller has used up a quota: QUOTA_EXCEEDED. */
  public static final class QuotaExceeded extends WasmkilnException {}

  /** No worker of the engine is ready: WORKER_UNAVAILABLE. */
  public static final class WorkerUnavailable extends WasmkilnException {}

  /** The daemon is about to end: ask another: SERVER_DRAINING. */
  public static final class ServerDraining extends WasmkilnException {}

  /** The daemon asks who calls: CREDENTIALS_MISSING. */
  public static final class CredentialsMissing extends WasmkilnException {}

  /** The token or certificate does not count: CREDENTIALS_INVALID. */
  public static final class CredentialsInvalid extends WasmkilnException {}

  /** The caller may not do this: ROLE_MISSING. */
  public static final class RoleMissing extends WasmkilnException {}

  /** No daemon answers at the address, or TLS fails: CONNECTION_FAILED. */
  public static final class ConnectionFailed extends WasmkilnException {}

  /** No answer came within the call's own time: DEADLINE_EXCEEDED. */
  public static final class DeadlineExceeded extends WasmkilnException {}

  /** The bytes differ from their header, or the header from the call: ARTIFACT_MISMATCH. */
  public static final class ArtifactMismatch extends WasmkilnException {}

  /**
   * No trusted key signed the artifact: ATTESTATION_INVALID. The cause in the metadata is
   * "unsigned", "stranger" or "mismatch".
   */
  public static final class AttestationInvalid extends WasmkilnException {}

  /** The daemon's answer is about something else: UNEXPECTED_ANSWER. */
  public static final class UnexpectedAnswer extends WasmkilnException {}
}
