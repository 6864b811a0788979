package com.wasmkiln.client;

import static com.wasmkiln.client.WasmkilnException.mismatch;

import com.google.protobuf.ByteString;
import com.wasmkiln.v1.ArtifactHeader;
import com.wasmkiln.v1.CompileRequest;
import com.wasmkiln.v1.CompileResponse;
import com.wasmkiln.v1.GetCapabilitiesRequest;
import com.wasmkiln.v1.GetCapabilitiesResponse;
import com.wasmkiln.v1.LoadRequest;
import com.wasmkiln.v1.LoadResponse;
import com.wasmkiln.v1.StatsRequest;
import com.wasmkiln.v1.StatsResponse;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.util.Iterator;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;

/**
 * Calls one daemon. Safe for many threads at once.
 *
 * <p>{@link #compile} asks by the module's SHA-256 first and uploads the module only if the daemon
 * lacks it. What it returns was checked: size and SHA-256, the header against the call and, with
 * trusted keys, a signature. The client retries nothing by itself, apart from the upload and from
 * asking for bytes where it cannot use a file.
 */
public final class WasmkilnClient implements AutoCloseable {
  // A daemon puts no larger artifact into its header's message.
  private static final int INLINE_LIMIT_BYTES = 65_536;
  // Room made for an artifact before it is here: more grows as it comes.
  private static final long MOST_BYTES_AT_ONCE = 64L << 20;
  // A newer daemon may send parts that this client does not know, but not endlessly.
  private static final int MAX_EMPTY_MESSAGES = 100;
  private static final long NO_FILE_NANOS = TimeUnit.MINUTES.toNanos(1);

  private static final Pattern DIGEST = Pattern.compile("[0-9a-f]{64}");

  private final ManagedChannel channel;
  private final Calls calls;
  private final TrustedKeys trusted;
  private final long maxArtifactBytes;
  private final boolean isHostStoreOn;
  // Since when, by nanoTime, to ask for no file, since that one was of no use; null for never.
  private volatile Long uselessSince;

  WasmkilnClient(ManagedChannel channel, Calls calls, ClientBuilder options) {
    this.channel = channel;
    this.calls = calls;
    this.trusted = options.trusted;
    this.maxArtifactBytes = options.maxArtifactBytes;
    this.isHostStoreOn = options.isHostStoreOn && Addresses.isLocal(options.address);
  }

  /** Return what makes a client of the daemon at an address, which is host:port. */
  public static ClientBuilder builder(String address) {
    return new ClientBuilder(address);
  }

  /** End running calls and the connection. */
  @Override
  public void close() {
    channel.shutdownNow();
  }

  /**
   * Return the artifact of a module.
   *
   * @throws WasmkilnException if the daemon refuses it, or the artifact is not what it should be
   */
  public Artifact compile(byte[] module, CompileOptions options) {
    return compile(TrustedKeys.sha256(module), module, options);
  }

  /**
   * Return the artifact of a module that the daemon has, by the SHA-256 of its bytes in lowercase
   * hex.
   *
   * @throws WasmkilnException.ModuleNotLoaded if the daemon does not have it
   */
  public Artifact compileDigest(String sha256, CompileOptions options) {
    if (!DIGEST.matcher(sha256).matches()) {
      throw new IllegalArgumentException("a digest is 64 lowercase hexadecimal digits");
    }
    return compile(sha256, null, options);
  }

  /** Validate a module with an engine, and store it in the daemon. */
  public LoadResponse load(byte[] module, CompileOptions options) {
    String digest = TrustedKeys.sha256(module);
    LoadRequest request =
        LoadRequest.newBuilder()
            .setModule(ByteString.copyFrom(module))
            .setEngine(options.engine())
            .build();
    LoadResponse answer = calls.make(options, digest, stub -> stub.load(request));
    if (!answer.getSha256().equals(digest) || answer.getSizeBytes() != module.length) {
      throw WasmkilnException.own(
          Status.Code.DATA_LOSS,
          "UNEXPECTED_ANSWER",
          String.format(
              "loaded module %s, and the daemon's answer is about %s",
              digest, WasmkilnException.quoted(answer.getSha256())),
          Map.of());
    }
    return answer;
  }

  /** Return the daemon's counters. */
  public StatsResponse stats() {
    return calls.make(
        CompileOptions.defaults(), "", stub -> stub.stats(StatsRequest.getDefaultInstance()));
  }

  /** Return what a compile may ask for: engines, targets, settings and limits. */
  public GetCapabilitiesResponse capabilities() {
    return calls.make(
        CompileOptions.defaults(),
        "",
        stub -> stub.getCapabilities(GetCapabilitiesRequest.getDefaultInstance()));
  }

  private Artifact compile(String digest, byte[] module, CompileOptions options) {
    Calls.Budget budget = calls.budget(options);
    try {
      return compile(budget, digest, module, options);
    } catch (WasmkilnException failure) {
      throw failure.ofRequest(budget.requestId());
    }
  }

  private Artifact compile(
      Calls.Budget budget, String digest, byte[] module, CompileOptions options) {
    Long since = uselessSince;
    CompileRequest.Builder request =
        CompileRequest.newBuilder()
            .setSha256(digest)
            .setEngine(options.engine())
            .setTarget(options.target())
            .setCpu(options.cpu())
            .putAllSettings(options.settings())
            .setInlineLimitBytes(INLINE_LIMIT_BYTES)
            .setAcceptHostFile(
                isHostStoreOn && (since == null || System.nanoTime() - since > NO_FILE_NANOS));
    try {
      try {
        return ask(budget, request.build(), digest, module);
      } catch (WasmkilnException.ModuleNotLoaded notLoaded) {
        if (module == null) {
          throw notLoaded;
        }
      }
      request.setModule(ByteString.copyFrom(module));
      return ask(budget, request.build(), digest, module);
    } catch (HostFile.Useless useless) {
      uselessSince = System.nanoTime();
    }
    // The daemon has the module and the artifact by now.
    request.setSha256(digest).setAcceptHostFile(false);
    try {
      return ask(budget, request.build(), digest, module);
    } catch (HostFile.Useless impossible) {
      throw new IllegalStateException(impossible);
    }
  }

  /** Make one Compile call, and return its verified artifact. */
  private Artifact ask(Calls.Budget budget, CompileRequest request, String digest, byte[] module)
      throws HostFile.Useless {
    // Ends the stream where its rest is of no use.
    Context.CancellableContext context = Context.current().withCancellation();
    Context before = context.attach();
    try {
      Content content =
          calls.make(
              budget, digest, stub -> read(stub.compile(request), request, digest, module));
      ArtifactHeader header = content.header;
      if (header.hasHostFile()) {
        return fromFile(header, content.bytes.size());
      }
      byte[] bytes = content.bytes.toByteArray();
      check(header, bytes);
      return new Artifact(header, bytes, null);
    } finally {
      context.detach(before);
      context.cancel(null);
    }
  }

  private record Content(ArtifactHeader header, ByteArrayOutputStream bytes) {}

  private Content read(
      Iterator<CompileResponse> answers, CompileRequest request, String digest, byte[] module) {
    ArtifactHeader header = null;
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    int empty = 0;
    while (answers.hasNext()) {
      CompileResponse answer = answers.next();
      switch (answer.getPartCase()) {
        case HEADER -> {
          if (header != null) {
            throw mismatch("the daemon's answer has two headers");
          }
          HeaderChecks.check(request, digest, module, answer.getHeader());
          checkSize(answer.getHeader());
          header = answer.getHeader().toBuilder().clearInlineArtifact().build();
          bytes =
              new ByteArrayOutputStream((int) Math.min(header.getSizeBytes(), MOST_BYTES_AT_ONCE));
          bytes.writeBytes(answer.getHeader().getInlineArtifact().toByteArray());
        }
        case CHUNK -> {
          if (header == null) {
            throw mismatch("the daemon's answer has bytes before its header");
          }
          if (bytes.size() + (long) answer.getChunk().size() > header.getSizeBytes()) {
            throw mismatch(
                "the artifact is longer than the %d bytes of its header", header.getSizeBytes());
          }
          if (answer.getChunk().isEmpty()) {
            empty++;
          }
          bytes.writeBytes(answer.getChunk().toByteArray());
        }
        default -> empty++;
      }
      if (empty > MAX_EMPTY_MESSAGES) {
        throw mismatch("the daemon sent too many empty messages");
      }
    }
    if (header == null) {
      throw mismatch("the daemon's answer ended without a header");
    }
    return new Content(header, bytes);
  }

  private Artifact fromFile(ArtifactHeader header, int received) throws HostFile.Useless {
    if (received > 0) {
      throw mismatch("the daemon named a file and sent bytes too");
    }
    HostFile file = HostFile.open(header);
    if (!trusted.isEmpty()) {
      // Whoever trusts the file's owner needs no digest; who gave keys asked for a signature.
      try {
        boolean isYoung = file.isYoung();
        byte[] content = file.read();
        check(header, content);
        file.checkUnchanged();
        if (isYoung) {
          close(file);
          return new Artifact(header, content, null);
        }
      } catch (WasmkilnException | IOException | HostFile.Useless refused) {
        close(file);
        throw new HostFile.Useless(refused.getMessage());
      }
    }
    return new Artifact(header, null, file);
  }

  private void check(ArtifactHeader header, byte[] bytes) {
    Artifact.checkBytes(header, bytes);
    if (!trusted.isEmpty()) {
      Attestation.verify(header, trusted);
    }
  }

  private void checkSize(ArtifactHeader header) {
    long size = header.getSizeBytes();
    if (size < 0 || size > maxArtifactBytes) {
      throw WasmkilnException.own(
          Status.Code.RESOURCE_EXHAUSTED,
          "ARTIFACT_TOO_LARGE",
          String.format(
              "the artifact has %s bytes, above this client's limit of %d: raise maxArtifactBytes",
              Long.toUnsignedString(size), maxArtifactBytes),
          Map.of(
              "size_bytes", Long.toUnsignedString(size),
              "limit_bytes", Long.toString(maxArtifactBytes)));
    }
  }

  private static void close(HostFile file) {
    try {
      file.close();
    } catch (IOException ignored) {
      // It was open for reading.
    }
  }
}
