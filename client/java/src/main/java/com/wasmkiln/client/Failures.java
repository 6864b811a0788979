package com.wasmkiln.client;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.Locale;
import java.util.Map;

/** Turns a failed gRPC call into the exception that a caller sees. */
final class Failures {
  private static final String UNKNOWN_CA = "its certificate is by a CA that is not trusted";
  private static final String NO_GRPC = "the server there speaks TLS, or no gRPC";
  // What gRPC's and Java's own words for a failed connection mean.
  private static final Map<String, String> CAUSES =
      Map.ofEntries(
          Map.entry("connection refused", "connection refused"),
          Map.entry("unable to resolve host", "unknown host"),
          Map.entry("unable to find valid certification path", UNKNOWN_CA),
          Map.entry("does not chain with any of the trust anchors", UNKNOWN_CA),
          Map.entry("no subject alternative", "its certificate is for another host"),
          Map.entry("no name matching", "its certificate is for another host"),
          Map.entry("notafter", "its certificate has expired"),
          Map.entry("not an ssl/tls record", "the server there speaks no TLS"),
          Map.entry("first received frame was not settings", NO_GRPC),
          // In the middle of a call too.
          Map.entry("network closed for unknown reason", NO_GRPC + "; or the connection was lost"),
          Map.entry("connection reset", "the connection was lost"),
          Map.entry(
              "closed while performing tls negotiation",
              "the server there speaks another version of TLS, or none"));

  private Failures() {}

  static WasmkilnException of(
      StatusRuntimeException failure, String address, Duration timeout, String requestId) {
    Status status = failure.getStatus();
    String text = status.getDescription() == null ? "" : status.getDescription();
    StatusDetails said = StatusDetails.of(failure.getTrailers());
    String reason = said.reason;
    String message = text.isEmpty() ? status.getCode().name() : text;
    Map<String, String> metadata = Map.copyOf(said.metadata);
    if (reason.isEmpty()) {
      switch (status.getCode()) {
        case UNAVAILABLE -> {
          String detail = words(status);
          reason = "CONNECTION_FAILED";
          message =
              String.format(
                  "no daemon answers at %s%s: start one with `wasmkilnd serve`, or check the address",
                  address, causeOf(detail));
          metadata = Map.of("address", address, "detail", detail);
        }
        case DEADLINE_EXCEEDED -> {
          reason = "DEADLINE_EXCEEDED";
          message =
              String.format(
                  Locale.ROOT, "no answer from %s within %.3f s", address, timeout.toMillis() / 1e3);
          metadata = Map.of("address", address, "detail", text);
        }
        case UNIMPLEMENTED ->
            message =
                String.format(
                    "the daemon at %s does not serve this call there: it may be older than this"
                        + " client",
                    address);
        case RESOURCE_EXHAUSTED -> {
          // How gRPC servers refuse a request above their own limit.
          if (text.toLowerCase(Locale.ROOT).contains("received message larger than max")) {
            reason = "MODULE_TOO_LARGE";
            message = "the module is larger than the daemon accepts (" + text + ")";
          }
        }
        default -> {}
      }
    }
    if (reason.equals("CREDENTIALS_MISSING")) {
      message += " (ClientBuilder: token or tokenFile, or tls with a certificate)";
    }
    String id = metadata.getOrDefault("request_id", requestId);
    return WasmkilnException.of(
        message,
        new WasmkilnException.Details(
            status.getCode(), reason, metadata, said.retryAfter, id, said.violations),
        failure);
  }

  private static String words(Status status) {
    StringBuilder words = new StringBuilder();
    if (status.getDescription() != null) {
      words.append(status.getDescription().lines().findFirst().orElse(""));
    }
    int depth = 0;
    for (Throwable each = status.getCause(); each != null && depth < 8; each = each.getCause()) {
      words.append("; ").append(each.getMessage());
      depth++;
    }
    return words.toString();
  }

  private static String causeOf(String detail) {
    String text = detail.toLowerCase(Locale.ROOT);
    return CAUSES.entrySet().stream()
        .filter(each -> text.contains(each.getKey()))
        .map(each -> " (" + each.getValue() + ")")
        .findFirst()
        .orElse("");
  }
}
