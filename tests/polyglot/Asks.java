import com.wasmkiln.client.*;
import io.grpc.TlsChannelCredentials;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;

/**
 * Compiles a module, once or several times, each by a client of its own. Prints a line of five
 * columns each time, between tabs: what it got, or why not.
 *
 * <pre>Asks ADDRESS MODULE.wasm [--key PATH] [--engine ID] [--ca CA.pem] [--token-file FILE]
 *     [--digest SHA256] [--timeout-ms N] [--times N] [--out FILE] [--load yes] [--pause call]
 *     [--compatibility FILE] [--fresh yes]
 *     [--accept-fast yes] [--missing SHA256]</pre>
 *
 * <p>With {@code --load} it loads the module, as background work. With {@code --pause call} a line
 * on standard input ends all calls; with {@code --pause file}, which Go's and Node's program have,
 * it waits for that line when it has opened a file. Those two take files only with {@code --store}.
 */
public final class Asks {
  private static final Map<String, String> FLAGS = new HashMap<>();

  public static void main(String[] words) throws Exception {
    for (int at = 2; at + 1 < words.length; at += 2) {
      FLAGS.put(words[at], words[at + 1]);
    }
    if (FLAGS.containsKey("--pause")) {
      Thread calling = Thread.currentThread();
      new Thread(
              () -> {
                try {
                  System.in.read();
                } catch (java.io.IOException none) {
                  throw new IllegalStateException(none);
                }
                calling.interrupt();
              })
          .start();
    }
    byte[] module = Files.readAllBytes(Path.of(words[1]));
    for (int left = Integer.parseInt(FLAGS.getOrDefault("--times", "1")); left > 0; left--) {
      try {
        ask(words[0], module);
      } catch (WasmkilnException refused) {
        String retry = refused.retryAfter().map(each -> "" + each.toMillis()).orElse("");
        String cause = refused.metadata().getOrDefault("cause", "");
        boolean isCancelled = refused.code() == io.grpc.Status.Code.CANCELLED;
        String reason = isCancelled ? "cancelled" : refused.reason();
        say(reason, refused.requestId(), retry, cause, refused.getMessage());
      } catch (IllegalArgumentException unusable) {
        say("unusable", "", "", "", unusable.getMessage());
      }
    }
  }

  private static void ask(String address, byte[] module) throws Exception {
    ClientBuilder builder = WasmkilnClient.builder(address);
    if (FLAGS.containsKey("--key")) {
      builder.trustedKeys(TrustedKeys.read(Path.of(FLAGS.get("--key"))));
    }
    if (FLAGS.containsKey("--ca")) {
      var ca = Path.of(FLAGS.get("--ca")).toFile();
      builder.tls(TlsChannelCredentials.newBuilder().trustManager(ca).build());
    }
    if (FLAGS.containsKey("--token-file")) {
      builder.tokenFile(Path.of(FLAGS.get("--token-file")));
    }
    CompileOptions options = CompileOptions.defaults().engine(FLAGS.getOrDefault("--engine", ""));
    if (FLAGS.containsKey("--fresh")) {
      options = options.skipCacheLookup();
    }
    if (FLAGS.containsKey("--accept-fast")) {
      options = options.acceptFast();
    }
    if (FLAGS.containsKey("--timeout-ms")) {
      options = options.timeout(Duration.ofMillis(Long.parseLong(FLAGS.get("--timeout-ms"))));
    }
    if (FLAGS.containsKey("--compatibility")) {
      options = options.compatibility(Files.readAllBytes(Path.of(FLAGS.get("--compatibility"))));
    }
    try (WasmkilnClient client = builder.build()) {
      if (FLAGS.containsKey("--load")) {
        var loaded = client.load(module, options.background());
        say("loaded", "", loaded.getEngine(), "", loaded.getSha256());
        return;
      }
      if (FLAGS.containsKey("--missing")) {
        var key = com.wasmkiln.v1.ArtifactKey.newBuilder();
        key.setModuleSha256(FLAGS.get("--missing")).setEngine(options.engine());
        say("missing", "", "", "" + client.findMissing(java.util.List.of(key.build())).size(), "");
        return;
      }
      String digest = FLAGS.get("--digest");
      Artifact artifact =
          digest != null ? client.compileDigest(digest, options) : client.compile(module, options);
      if (FLAGS.containsKey("--out")) {
        Files.write(Path.of(FLAGS.get("--out")), artifact.bytes());
      }
      var header = artifact.header();
      String size = "" + artifact.bytes().length;
      String engine = header.getEngine().getId();
      say("compiled", header.getOrigin().name(), engine, size, header.getModuleSha256());
    }
  }

  private static void say(String... columns) {
    System.out.println(String.join("\t", columns).replace('\n', ' '));
  }
}
