package com.wasmkiln.client;

import io.grpc.*;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.regex.Pattern;

/** Says how a client reaches its daemon, and what it trusts. */
public final class ClientBuilder implements Cloneable {
  private static final int MAX_MESSAGE_BYTES = 64 << 20;
  private static final Pattern LOCAL =
      Pattern.compile(
          "unix:.+|(dns:(///)?)?"
              + "(127(\\.[0-9]{1,3}){3}|\\[::1\\]|([^,/:]+\\.)?localhost)(:[0-9]+)?");

  // Without a port gRPC connects to 80 or 443. With "///" it is for a resolver of the program.
  private static final Pattern ADDRESS =
      Pattern.compile(
          "(?!dns:|https?:)[a-z0-9+.-]+:///.+|(unix|xds):.+"
              + "|(dns:(//[^/]*/)?)?([^:/\\[]+|\\[[^\\]]+\\]):[1-9][0-9]{0,4}");

  final String address;
  TrustedKeys trusted = TrustedKeys.none();
  Duration timeout = Duration.ofMinutes(1);
  // Four times the default limit of a daemon; an array of bytes can have twice as many.
  long maxArtifactBytes = 1L << 30;
  private ChannelCredentials credentials = InsecureChannelCredentials.create();
  private boolean isSecure;
  private String token = "";
  private Path tokenFile;
  private ManagedChannel channel;

  ClientBuilder(String address) {
    this.address = address;
  }

  /** Verify that one of these keys signed each artifact. Without keys no signature is checked. */
  public ClientBuilder trustedKeys(TrustedKeys keys) {
    trusted = keys;
    return this;
  }

  /** Connect over TLS: {@code TlsChannelCredentials.newBuilder().trustManager(caFile).build()}. */
  public ClientBuilder tls(ChannelCredentials tls) {
    credentials = tls;
    isSecure = true;
    return this;
  }

  /** Send a token with each call, over TLS or to this machine only. */
  public ClientBuilder token(String bearer) {
    token = bearer;
    return this;
  }

  /** Send the token in a file, which is read at each call, so that a new token counts at once. */
  public ClientBuilder tokenFile(Path file) {
    tokenFile = file;
    return this;
  }

  /** Limit how long a call may take that names no time of its own; by default a minute. */
  public ClientBuilder timeout(Duration limit) {
    timeout = limit;
    return this;
  }

  /** Refuse larger artifacts; by default those above 1 GiB. */
  public ClientBuilder maxArtifactBytes(long limit) {
    maxArtifactBytes = Math.min(limit, Integer.MAX_VALUE - 8);
    return this;
  }

  /**
   * Use a channel of your own. The client closes it. TLS is yours then; a token is sent over it.
   */
  public ClientBuilder channel(ManagedChannel own) {
    channel = own;
    return this;
  }

  /** Return the client. It connects with the first call. */
  public WasmkilnClient build() {
    if (channel == null && !ADDRESS.matcher(address).matches()) {
      throw new IllegalArgumentException("an address is host:port or unix:/path, not " + address);
    }
    boolean hasToken = !token.isEmpty() || tokenFile != null;
    if (channel == null && hasToken && !isSecure && !LOCAL.matcher(address).matches()) {
      throw new IllegalArgumentException(
          "cannot send a token to " + address + " in plaintext: anybody on the way could read it;"
              + " use tls(...)");
    }
    try {
      return new WasmkilnClient(channel == null ? open() : channel, (ClientBuilder) clone());
    } catch (CloneNotSupportedException impossible) {
      throw new IllegalStateException(impossible);
    }
  }

  private ManagedChannel open() {
    try {
      var builder =
          Grpc.newChannelBuilder(address, credentials)
              .maxInboundMessageSize(MAX_MESSAGE_BYTES)
              .userAgent("wasmkiln-java")
              .disableRetry();
      if (LOCAL.matcher(address).matches()) {
        // What goes to this machine, a token too, is no business of a proxy.
        builder.proxyDetector(server -> null);
      }
      return builder.build();
    } catch (IllegalArgumentException | ManagedChannelProvider.ProviderNotFoundException lacking) {
      String needs = "; Unix sockets need Linux and grpc-netty-shaded 1.47 or newer";
      throw new IllegalArgumentException(
          "cannot connect to " + address + ": " + lacking.getMessage() + needs, lacking);
    }
  }

  /** Return what says who calls; empty without a token. */
  String authorization() {
    try {
      String bearer = tokenFile == null ? token : Files.readString(tokenFile).strip();
      return bearer.isEmpty() ? "" : "Bearer " + bearer;
    } catch (IOException failure) {
      throw new UncheckedIOException("cannot read the token: " + failure.getMessage(), failure);
    }
  }
}
