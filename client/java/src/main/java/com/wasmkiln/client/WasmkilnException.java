package com.wasmkiln.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.*;
import javax.net.ssl.SSLException;

/**
 * Every failure of a call. Decide by {@link #reason()}: docs/reference/errors.md has the daemon's.
 * The client's own are CONNECTION_FAILED (no daemon answers, or TLS fails), DEADLINE_EXCEEDED,
 * ARTIFACT_MISMATCH (the bytes differ from their header, or the header from the call),
 * ATTESTATION_INVALID (no trusted key signed the artifact: the metadata's cause is "unsigned",
 * "stranger" or "mismatch") and UNEXPECTED_ANSWER. There is none where another server failed.
 */
@SuppressWarnings("serial")
public final class WasmkilnException extends RuntimeException {
  private static final long MAX_RETRY_SECONDS = Duration.ofDays(365).toSeconds();

  private final Status.Code code;
  private final String reason;
  private final Map<String, String> metadata;
  private Duration retryAfter;
  private String requestId = "";
  private transient List<BadRequest.FieldViolation> violations = List.of();

  WasmkilnException(
      Status.Code code, String reason, String message, Map<String, String> metadata) {
    super(message);
    this.code = code;
    this.reason = reason;
    this.metadata = Map.copyOf(metadata);
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

  /** The fields of the request that the daemon refused, and why. */
  public List<BadRequest.FieldViolation> violations() {
    return violations;
  }

  /** Return whether the connection failed, or broke in a way that another try may heal. */
  boolean isCut() {
    for (Throwable cause = getCause(); cause != null; cause = cause.getCause()) {
      if (cause instanceof SSLException) {
        return false;
      }
    }
    // gRPC has other codes for a stream that the other side reset, ended without a status, or
    // cancelled because it ends.
    String detail = metadata.getOrDefault("detail", "");
    boolean isReset = detail.contains("RST_STREAM") || detail.contains("unexpected EOS");
    return code == Status.Code.UNAVAILABLE || isReset || detail.equals("CANCELLED");
  }

  /** Return the exception for a call that failed. */
  static WasmkilnException of(StatusRuntimeException failure, String address, Duration timeout) {
    Status status = failure.getStatus();
    String text = status.getDescription() == null ? "" : status.getDescription();
    ErrorInfo info = ErrorInfo.getDefaultInstance();
    RetryInfo retry = RetryInfo.getDefaultInstance();
    BadRequest bad = BadRequest.getDefaultInstance();
    try {
      var rich = StatusProto.fromThrowable(failure);
      for (Any each : rich == null ? List.<Any>of() : rich.getDetailsList()) {
        if (each.is(ErrorInfo.class)) {
          info = each.unpack(ErrorInfo.class);
        } else if (each.is(RetryInfo.class)) {
          retry = each.unpack(RetryInfo.class);
        } else if (each.is(BadRequest.class)) {
          bad = each.unpack(BadRequest.class);
        }
      }
    } catch (InvalidProtocolBufferException | IllegalArgumentException damaged) {
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
        new WasmkilnException(
            status.getCode(), reason, text.isEmpty() ? status.getCode().name() : text, metadata);
    made.initCause(failure);
    if (retry.hasRetryDelay()) {
      long seconds = retry.getRetryDelay().getSeconds();
      made.retryAfter =
          Duration.ofSeconds(Math.max(0, Math.min(seconds, MAX_RETRY_SECONDS)))
              .plusNanos(Math.max(0, retry.getRetryDelay().getNanos()));
    }
    made.violations = bad.getFieldViolationsList();
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
}
