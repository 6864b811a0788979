package com.wasmkiln.client;

import com.wasmkiln.v1.ModuleServiceGrpc;
import com.wasmkiln.v1.ModuleServiceGrpc.ModuleServiceBlockingStub;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.time.Duration;
import java.util.HexFormat;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** Makes calls: with a deadline, a token and an id, and with failures told as exceptions. */
final class Calls {
  // Far from where nanoseconds overflow.
  private static final Duration LONGEST = Duration.ofDays(365);
  private static final SecureRandom RANDOM = new SecureRandom();

  private final ManagedChannel channel;
  private final String address;
  private final Duration timeout;
  private final String token;
  private final Path tokenFile;

  Calls(ManagedChannel channel, ClientBuilder options) {
    this.channel = channel;
    this.address = options.address;
    this.timeout = options.timeout;
    this.token = options.token;
    this.tokenFile = options.tokenFile;
  }

  /** How long a call, or several for one purpose, may take from now on. */
  record Budget(Duration timeout, long start, boolean isBackground, String requestId) {
    long leftNanos() {
      return timeout.toNanos() - (System.nanoTime() - start);
    }
  }

  Budget budget(CompileOptions options) {
    Duration limit = options.timeout() == null ? timeout : options.timeout();
    if (limit.isNegative() || limit.isZero() || limit.compareTo(LONGEST) > 0) {
      throw new IllegalArgumentException("a timeout has to be positive, a year at most");
    }
    byte[] id = new byte[8];
    RANDOM.nextBytes(id);
    return new Budget(
        limit,
        System.nanoTime(),
        options.isBackground(),
        HexFormat.of().formatHex(id));
  }

  <T> T make(CompileOptions options, String module, Function<ModuleServiceBlockingStub, T> call) {
    return make(budget(options), module, call);
  }

  /** Make a call about a module, or about none if that is empty. */
  <T> T make(Budget budget, String module, Function<ModuleServiceBlockingStub, T> call) {
    if (channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
      // Otherwise gRPC fails each call with the first one's error until its next attempt.
      channel.resetConnectBackoff();
    }
    Metadata said = new Metadata();
    said.put(key("x-request-id"), budget.requestId());
    if (budget.isBackground()) {
      said.put(key("wasmkiln-priority"), "background");
    }
    if (!module.isEmpty()) {
      // A balancer that routes by it sends all calls about a module to the same daemon.
      said.put(key("wasmkiln-module"), module);
    }
    String bearer = bearer();
    if (!bearer.isEmpty()) {
      said.put(key("authorization"), "Bearer " + bearer);
    }
    ModuleServiceBlockingStub stub =
        ModuleServiceGrpc.newBlockingStub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(said))
            .withDeadlineAfter(budget.leftNanos(), TimeUnit.NANOSECONDS);
    try {
      return call.apply(stub);
    } catch (StatusRuntimeException failure) {
      throw Failures.of(failure, address, budget.timeout(), budget.requestId());
    }
  }

  private static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  private String bearer() {
    String text = token;
    if (tokenFile != null) {
      try {
        text = Files.readString(tokenFile).strip();
      } catch (IOException failure) {
        throw new UncheckedIOException("cannot read the token: " + failure.getMessage(), failure);
      }
    }
    if (!text.chars().allMatch(each -> each > ' ' && each <= '~')) {
      throw new IllegalArgumentException(
          "cannot use the token: it has characters that no token has");
    }
    return text;
  }
}
