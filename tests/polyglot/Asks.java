import com.wasmkiln.client.*;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;

/**
 * Compiles a module, once or several times. Prints a line of five columns each time, between tabs:
 * what it got, or why not.
 *
 * <pre>Asks ADDRESS MODULE.wasm [--key PATH] [--engine ID] [--ca CA.pem] [--token-file FILE]
 *     [--digest SHA256] [--timeout-ms N] [--times N] [--out FILE]</pre>
 */
public final class Asks {
  public static void main(String[] words) throws Exception {
    Map<String, String> flags = new HashMap<>();
    for (int at = 2; at + 1 < words.length; at += 2) {
      flags.put(words[at], words[at + 1]);
    }
    try {
      ClientBuilder builder = WasmkilnClient.builder(words[0]);
      if (flags.containsKey("--key")) {
        builder.trustedKeys(TrustedKeys.read(Path.of(flags.get("--key"))));
      }
      if (flags.containsKey("--ca")) {
        builder.tls(Path.of(flags.get("--ca")).toFile());
      }
      if (flags.containsKey("--token-file")) {
        builder.tokenFile(Path.of(flags.get("--token-file")));
      }
      try (WasmkilnClient client = builder.build()) {
        for (int left = Integer.parseInt(flags.getOrDefault("--times", "1")); left > 0; left--) {
          ask(client, Files.readAllBytes(Path.of(words[1])), flags);
        }
      }
    } catch (IllegalArgumentException unusable) {
      say("unusable", "", "", "", unusable.getMessage());
    }
  }

  private static void ask(WasmkilnClient client, byte[] module, Map<String, String> flags)
      throws Exception {
    CompileOptions options = CompileOptions.defaults().engine(flags.getOrDefault("--engine", ""));
    if (flags.containsKey("--timeout-ms")) {
      options = options.timeout(Duration.ofMillis(Long.parseLong(flags.get("--timeout-ms"))));
    }
    try {
      String digest = flags.get("--digest");
      Artifact artifact =
          digest != null
              ? client.compileDigest(digest, options)
              : client.compile(module, options);
      var header = artifact.header();
      if (flags.containsKey("--out")) {
        Files.write(Path.of(flags.get("--out")), artifact.bytes());
      }
      String origin = header.getOrigin().name();
      String sha256 = header.getModuleSha256();
      say("compiled", origin, header.getEngine().getId(), "" + artifact.bytes().length, sha256);
    } catch (WasmkilnException refused) {
      String retry = refused.retryAfter().map(each -> "" + each.toMillis()).orElse("");
      String cause = refused.metadata().getOrDefault("cause", "");
      say(refused.reason(), refused.requestId(), retry, cause, refused.getMessage());
    }
  }

  private static void say(String... columns) {
    System.out.println(String.join("\t", columns).replace('\n', ' '));
  }
}
