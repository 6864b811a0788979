package com.wasmkiln.client;

import com.google.protobuf.ByteString;
import com.google.protobuf.UnsafeByteOperations;
import com.wasmkiln.v1.*;
import com.wasmkiln.v1.ModuleServiceGrpc.ModuleServiceBlockingStub;
import io.grpc.*;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import java.util.function.Supplier;

/**
 * Calls one daemon. Safe for many threads at once.
 *
 * <p>{@link #compile} asks by the module's SHA-256 first and uploads the module only if the daemon
 * lacks it. What it returns was checked: size and SHA-256, the header against the call and, with
 * trusted keys, a signature. A call that fetches code or sends a module tries again while its time
 * lasts, where no daemon answers or it is busy. What was interrupted resumes.
 */
public final class WasmkilnClient implements AutoCloseable {
  // A daemon puts no larger artifact into its header's message.
  private static final int INLINE_LIMIT_BYTES = 65_536;
  // Larger modules go in pieces, of which a cut costs one.
  private static final int UPLOAD_ABOVE_BYTES = 8 << 20;
  private static final int PIECE_BYTES = 256 << 10;
  // How long the client leaves an upload to the call that took it over.
  private static final Duration OTHER_UPLOAD = Duration.ofSeconds(1);
  private static final long FIRST_PAUSE_MS = 100;
  private static final long LONGEST_PAUSE_MS = 2_000;
  // Settings that artifacts of earlier daemons do not state, and what these artifacts have.
  private static final Map<String, String> UNSTATED =
      Map.ofEntries(
          Map.entry("strategy", "cranelift"),
          Map.entry("compiler", "cranelift"),
          Map.entry("collector", "drc"),
          Map.entry("memory_init_cow", "true"),
          Map.entry("memory_reservation_for_growth", "2147483648"),
          Map.entry("debug_info", "false"),
          Map.entry("concurrency_support", "true"),
          Map.entry("wasm_branch_hinting", "false"),
          Map.entry("wasm_compact_imports", "false"),
          Map.entry("wasm_component_model_accessors", "false"),
          Map.entry("wasm_component_model_async", "true"),
          Map.entry("wasm_component_model_async_stackful", "false"),
          Map.entry("wasm_component_model_canonical_names", "false"),
          Map.entry("wasm_component_model_more_async_builtins", "false"));

  // What chooses an engine's fast compiler.
  private static final Set<Map.Entry<String, String>> FAST =
      Map.of("strategy", "winch", "compiler", "singlepass").entrySet();

  private final ManagedChannel channel;
  private final ClientBuilder options;

  /** Make a client of options that nobody else changes. */
  WasmkilnClient(ManagedChannel channel, ClientBuilder options) {
    this.channel = channel;
    this.options = options;
  }

  /** Return what makes a client of the daemon at an address: host:port, or unix:/path. */
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
    Call call = new Call(TrustedKeys.sha256(module), options);
    CompileRequest.Builder request = request(call.module, options);
    // Where no tier takes so large a module, it has to come with the request.
    boolean isLoaded = module.length <= UPLOAD_ABOVE_BYTES;
    for (boolean isSent = false; ; ) {
      try {
        return ask(call, request);
      } catch (WasmkilnException refused) {
        if (isSent || !refused.reason().equals("MODULE_NOT_LOADED")) {
          throw refused;
        }
      }
      isSent = isLoaded;
      if (isSent) {
        request.setModule(UnsafeByteOperations.unsafeWrap(module));
      } else {
        isLoaded = load(call, module, options.engine()) != null;
      }
    }
  }

  /**
   * Return the artifact of a module that the daemon has, by the SHA-256 of its bytes in lowercase
   * hex.
   *
   * @throws WasmkilnException with the reason MODULE_NOT_LOADED if the daemon does not have it
   */
  public Artifact compileDigest(String sha256, CompileOptions options) {
    if (!sha256.matches("[0-9a-f]{64}")) {
      throw new IllegalArgumentException("a digest is 64 lowercase hexadecimal digits");
    }
    return ask(new Call(sha256, options), request(sha256, options));
  }

  /** Validate a module with an engine, and store it in the daemon. */
  public LoadResponse load(byte[] module, CompileOptions options) {
    Call call = new Call(TrustedKeys.sha256(module), options);
    LoadResponse answer = null;
    while (answer == null) {
      answer = load(call, module, options.engine());
    }
    if (!answer.getSha256().equals(call.module) || answer.getSizeBytes() != module.length) {
      String text = "loaded module " + call.module + ", and the answer is about another";
      throw new WasmkilnException(Status.Code.DATA_LOSS, "UNEXPECTED_ANSWER", text, Map.of())
          .ofRequest(call.requestId);
    }
    return answer;
  }

  /** Return those of the keys whose artifacts no tier of the daemon has. */
  public List<ArtifactKey> findMissing(List<ArtifactKey> keys) {
    Call call = new Call("", CompileOptions.defaults());
    var request = FindMissingRequest.newBuilder().addAllKeys(keys).build();
    return call.persist(() -> call.make(stub -> stub.findMissing(request))).getMissingList();
  }

  /** Return the daemon's counters. */
  public StatsResponse stats() {
    return new Call("", CompileOptions.defaults())
        .make(stub -> stub.stats(StatsRequest.getDefaultInstance()));
  }

  /** Return what a compile may ask for: engines, targets, settings and limits. */
  public GetCapabilitiesResponse capabilities() {
    return new Call("", CompileOptions.defaults())
        .make(stub -> stub.getCapabilities(GetCapabilitiesRequest.getDefaultInstance()));
  }

  /** One call, or several for one purpose, which share an id and a deadline. */
  private final class Call {
    final String module;
    // What came of the artifact, in one answer to Compile or several.
    ArtifactHeader header = ArtifactHeader.getDefaultInstance();
    ByteString bytes = ByteString.EMPTY;
    // The digest of what the daemon compiled for this call, once a header has told it.
    String made = "";
    final ByteString compatibility;
    // Tries since more arrived than ever before, and how much that is.
    private int tries;
    private long most;
    // Why the last try failed.
    private WasmkilnException failure;
    private final Duration timeout;
    private final Deadline deadline;
    private final String requestId =
        String.format("%016x", ThreadLocalRandom.current().nextLong());
    private final String priority;

    /** About a module of this digest, or about none if that is empty. */
    Call(String module, CompileOptions how) {
      this.module = module;
      compatibility = how.compatibility();
      priority = how.isBackground() ? "background" : "";
      timeout = how.timeout() == null ? options.timeout : how.timeout();
      deadline = Deadline.after(timeout.toMillis(), TimeUnit.MILLISECONDS);
    }

    /** Forget what has come of an artifact. */
    void forget() {
      header = ArtifactHeader.getDefaultInstance();
      bytes = ByteString.EMPTY;
      made = "";
    }

    /** Note that so many bytes of the module or artifact are where they have to be. */
    void arrived(long bytes) {
      tries = bytes > most ? 0 : tries;
      most = Math.max(most, bytes);
    }

    /** Try as long as the time lasts and another try may help: docs/reference/api.md. */
    <T> T persist(Supplier<T> run) {
      tries = 0;
      most = 0;
      failure = null;
      while (true) {
        try {
          return run.get();
        } catch (WasmkilnException refused) {
          pause(refused);
        }
      }
    }

    /** Wait before another try, or throw the error if no other can follow. */
    private void pause(WasmkilnException refused) {
      if (refused.code() == Status.Code.DEADLINE_EXCEEDED && failure != null) {
        throw failure;
      }
      // Its caller leaves the upload to the call that took it over.
      boolean isOther = refused.reason().equals("UPLOAD_INTERRUPTED");
      boolean isPassing = refused.isCut() || refused.retryAfter().isPresent();
      if (isOther || !isPassing || channel.isShutdown()) {
        throw refused;
      }
      long longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS << Math.min(tries++, 10));
      long pause = ThreadLocalRandom.current().nextLong(longest / 2, longest + 1);
      pause += refused.retryAfter().orElse(Duration.ZERO).toMillis();
      if (pause > deadline.timeRemaining(TimeUnit.MILLISECONDS)) {
        throw refused;
      }
      failure = refused;
      sleep(pause);
    }

    /** Wait until the time is over, or the call or the client ends, which the next request tells. */
    void sleep(long pauseMs) {
      Deadline end = Deadline.after(pauseMs, TimeUnit.MILLISECONDS).minimum(deadline);
      try {
        while (!end.isExpired() && !Context.current().isCancelled()) {
          long left = Math.max(1, end.timeRemaining(TimeUnit.MILLISECONDS));
          if (channel.awaitTermination(Math.min(20, left), TimeUnit.MILLISECONDS)) {
            return;
          }
        }
      } catch (InterruptedException interrupted) {
        Thread.currentThread().interrupt();
      }
    }

    <T> T make(Function<ModuleServiceBlockingStub, T> method) {
      if (channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
        // Otherwise gRPC fails each call with the first one's error until its next attempt.
        channel.resetConnectBackoff();
      }
      Metadata sent = new Metadata();
      put(sent, "x-request-id", requestId);
      put(sent, "wasmkiln-priority", priority);
      // A balancer that routes by it sends all calls about a module to the same daemon.
      put(sent, "wasmkiln-module", module);
      put(sent, "authorization", options.authorization());
      ModuleServiceBlockingStub stub =
          ModuleServiceGrpc.newBlockingStub(channel)
              .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(sent))
              .withDeadline(deadline);
      // Ends a stream whose rest is of no use.
      Context.CancellableContext context = Context.current().withCancellation();
      Context before = context.attach();
      try {
        return method.apply(stub);
      } catch (StatusRuntimeException failure) {
        throw WasmkilnException.of(failure, options.address, timeout).ofRequest(requestId);
      } catch (WasmkilnException refused) {
        throw refused.ofRequest(requestId);
      } finally {
        context.detach(before);
        context.cancel(null);
      }
    }

    private static void put(Metadata sent, String name, String value) {
      if (!value.isEmpty()) {
        sent.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value);
      }
    }
  }

  /**
   * Have the daemon take a module: a large one in pieces, if the daemon knows that, and others in
   * one message. Return null where another call has taken an upload over, and may have ended it.
   */
  private LoadResponse load(Call call, byte[] module, String engine) {
    var query = QueryUploadRequest.newBuilder().setSha256(call.module).build();
    var first = UploadRequest.newBuilder().setSha256(call.module).setEngine(engine);
    try {
      if (module.length > UPLOAD_ABOVE_BYTES) {
        return call.persist(
            () -> {
              long held = call.make(stub -> stub.queryUpload(query)).getHeldBytes();
              long begin = Math.min(held & Long.MAX_VALUE, module.length);
              call.arrived(begin);
              first.setSizeBytes(module.length).setOffset(begin);
              return call.make(stub -> send(stub, first.build(), module));
            });
      }
    } catch (WasmkilnException refused) {
      if (refused.reason().equals("UPLOAD_INTERRUPTED")) {
        call.sleep(OTHER_UPLOAD.toMillis());
        return null;
      }
      if (refused.code() != Status.Code.UNIMPLEMENTED) {
        throw refused;
      }
    }
    ByteString bytes = UnsafeByteOperations.unsafeWrap(module);
    LoadRequest request = LoadRequest.newBuilder().setModule(bytes).setEngine(engine).build();
    return call.persist(() -> call.make(stub -> stub.load(request)));
  }

  /** Make an Upload call, which sends the next piece once gRPC has room for it. */
  private static LoadResponse send(
      ModuleServiceBlockingStub stub, UploadRequest first, byte[] module) {
    var one = stub.getChannel().newCall(ModuleServiceGrpc.getUploadMethod(), stub.getCallOptions());
    var inPieces =
        new ForwardingClientCall.SimpleForwardingClientCall<>(one) {
          private UploadRequest.Builder next;
          private int at;

          @Override
          public void start(Listener<UploadResponse> listener, Metadata headers) {
            super.start(
                new ForwardingClientCallListener.SimpleForwardingClientCallListener<>(listener) {
                  @Override
                  public void onReady() {
                    sendPieces();
                  }
                },
                headers);
          }

          @Override
          public synchronized void sendMessage(UploadRequest message) {
            next = message.toBuilder();
            at = (int) message.getOffset();
            sendPieces();
          }

          @Override
          public void halfClose() {
            // Behind the last piece.
          }

          private synchronized void sendPieces() {
            while (next != null && isReady()) {
              int size = Math.min(PIECE_BYTES, module.length - at);
              next.setOffset(at).setData(UnsafeByteOperations.unsafeWrap(module, at, size));
              super.sendMessage(next.build());
              at += size;
              next = at < module.length ? UploadRequest.newBuilder() : null;
              if (next == null) {
                super.halfClose();
              }
            }
          }
        };
    return ClientCalls.blockingUnaryCall(inPieces, first).getLoaded();
  }

  private static CompileRequest.Builder request(String sha256, CompileOptions options) {
    byte[] section = options.compatibility().toByteArray();
    String key = section.length == 0 ? "" : TrustedKeys.sha256(section);
    return CompileRequest.newBuilder()
        .setSha256(sha256)
        .setEngine(options.engine())
        .setTarget(options.target())
        .setCpu(options.cpu())
        .putAllSettings(options.settings())
        .setSkipCacheLookup(options.skipsCacheLookup())
        .setAcceptFast(options.acceptsFast())
        .setCompatibility(ByteString.copyFrom(HexFormat.of().parseHex(key)))
        .setInlineLimitBytes(INLINE_LIMIT_BYTES);
  }

  /** Make a Compile call. If it is cut, go on behind what came. */
  private Artifact ask(Call call, CompileRequest.Builder request) {
    call.forget();
    var next = request.clone();
    try {
      return call.persist(
          () -> {
            while (true) {
              String digest = call.header.getArtifactSha256();
              if (next.getSkipCacheLookup() && call.header.hasEngine()) {
                call.made = digest;
                next.setSkipCacheLookup(false);
              }
              next.setOffsetBytes(call.bytes.size());
              next.setArtifactSha256(call.bytes.isEmpty() ? "" : digest);
              CompileRequest asked = next.build();
              Artifact got = call.make(stub -> receive(stub.compile(asked), asked, call));
              boolean isMade = List.of("", call.header.getArtifactSha256()).contains(call.made);
              if (isMade || call.header.getOrigin() == Origin.ORIGIN_COMPILED) {
                return got;
              }
              // The daemon has lost it, and an older artifact is no answer.
              call.forget();
              next.setSkipCacheLookup(true);
            }
          });
    } catch (WasmkilnException refused) {
      boolean isKey = !request.getCompatibility().equals(call.compatibility);
      if (!refused.reason().equals("COMPATIBILITY_UNKNOWN") || !isKey) {
        throw refused;
      }
    }
    return ask(call, request.setCompatibility(call.compatibility));
  }

  private Artifact receive(Iterator<CompileResponse> answers, CompileRequest request, Call got) {
    ArtifactHeader header = null;
    while (answers.hasNext()) {
      CompileResponse answer = answers.next();
      ByteString part = answer.getChunk();
      if (answer.hasHeader()) {
        require(header == null, "the daemon's answer has two headers");
        header = answer.getHeader();
        check(request, got.module, header);
        got.header = header;
        got.bytes = header.getOffsetBytes() == 0 ? ByteString.EMPTY : got.bytes;
        part = header.getInlineArtifact();
      }
      long room = header == null ? 0 : header.getSizeBytes() - got.bytes.size();
      require(part.size() <= room, "the artifact is longer than its header says, or before it");
      got.bytes = got.bytes.concat(part);
      got.arrived(got.bytes.size());
    }
    require(header != null, "the daemon's answer ended without a header");
    byte[] bytes = got.bytes.toByteArray();
    require(bytes.length == header.getSizeBytes(), "the artifact ended before its last byte");
    String actual = TrustedKeys.sha256(bytes);
    require(
        actual.equals(header.getArtifactSha256()),
        "the artifact's bytes have the SHA-256 " + actual + ", and its header says another");
    options.trusted.check(header);
    return new Artifact(header.toBuilder().clearInlineArtifact().clearHostFile().build(), bytes);
  }

  /**
   * Throw unless a header is about what the request asked for. A signature binds an artifact to its
   * header, and not to the call: whoever sits in between could answer with an artifact that counts
   * no fuel.
   */
  private void check(CompileRequest request, String digest, ArtifactHeader header) {
    String name = header.getEngine().getName();
    String id = name + "-" + header.getEngine().getVersion();
    var asked = request.getSettingsMap().entrySet();
    var changed = new HashSet<>(header.getChangedSettingsMap().entrySet());
    boolean isFast = !Collections.disjoint(changed, FAST);
    if (request.getAcceptFast()) {
      changed.removeAll(FAST);
    }
    Map<String, String> stated = new HashMap<>(UNSTATED);
    stated.putAll(header.getSettingsMap());
    same("module", digest.equals(header.getModuleSha256()));
    same("engine", List.of("", name, id).contains(request.getEngine()));
    same("engine id", id.equals(header.getEngine().getId()));
    same("target", List.of("", header.getTarget()).contains(request.getTarget()));
    same("cpu", List.of("", header.getCpu()).contains(request.getCpu()));
    same("setting", stated.entrySet().containsAll(asked));
    // A setting that the call did not name has to have the engine's default, unless the host's
    // engine was shown, which compares them itself.
    same("changed setting", !request.getCompatibility().isEmpty() || asked.containsAll(changed));
    same("compiler", header.getIsFast() == isFast);
    same("encoding", header.getContentEncoding().isEmpty());
    boolean isRest =
        header.getOffsetBytes() == request.getOffsetBytes()
            && header.getArtifactSha256().equals(request.getArtifactSha256());
    same("beginning", header.getOffsetBytes() == 0 || isRest);
    long size = header.getSizeBytes();
    if (Long.compareUnsigned(size, options.maxArtifactBytes) > 0) {
      String bytes = Long.toUnsignedString(size);
      throw new WasmkilnException(
          Status.Code.RESOURCE_EXHAUSTED,
          "ARTIFACT_TOO_LARGE",
          "the artifact has " + bytes + " bytes: raise maxArtifactBytes to take it",
          Map.of("size_bytes", bytes, "limit_bytes", "" + options.maxArtifactBytes));
    }
  }

  private static void same(String what, boolean isSo) {
    require(isSo, "the artifact has another " + what + " than asked for");
  }

  private static void require(boolean isTrue, String otherwise) {
    if (!isTrue) {
      throw new WasmkilnException(
          Status.Code.DATA_LOSS, "ARTIFACT_MISMATCH", otherwise, Map.of());
    }
  }
}
