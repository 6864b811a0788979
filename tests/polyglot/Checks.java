import com.wasmkiln.client.CompileOptions;
import com.wasmkiln.client.TrustedKeys;
import com.wasmkiln.client.WasmkilnClient;
import com.wasmkiln.client.WasmkilnException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.List;

/** Says what the client makes of arguments of no use, and of a file that somebody writes to. */
public final class Checks {
  /** Run it: ADDRESS MODULE.wasm ENGINE WRONG_KEY.pem. */
  public static void main(String[] words) throws Exception {
    for (String address :
        List.of("127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "http://127.0.0.1:1")) {
      unusable(() -> WasmkilnClient.builder(address));
    }
    for (String address : List.of("127.0.0.1:50051", "[::1]:1", "dns:///kiln.example:50051")) {
      WasmkilnClient.builder(address).build().close();
    }
    byte[] module = Files.readAllBytes(Path.of(words[1]));
    CompileOptions options = CompileOptions.defaults().engine(words[2]);
    try (var client = WasmkilnClient.builder(words[0]).build()) {
      for (String digest : List.of("", "00", "G".repeat(64), "0".repeat(64) + "\n")) {
        unusable(() -> client.compileDigest(digest, options));
      }
      for (Duration limit :
          List.of(Duration.ZERO, Duration.ofSeconds(-1), Duration.ofSeconds(Long.MAX_VALUE))) {
        unusable(() -> client.compile(module, options.timeout(limit)));
      }
      try (var artifact = client.compile(module, options)) {
        artifact.bytes();
        artifact.checkUnchanged();
        Path file = artifact.path().orElseThrow();
        file.toFile().setWritable(true);
        byte[] other = artifact.bytes();
        other[other.length - 1] ^= 1;
        Files.write(file, other, StandardOpenOption.WRITE);
        mismatched(artifact::bytes);
        mismatched(
            () -> {
              artifact.checkUnchanged();
              return "";
            });
      }
    }
    TrustedKeys wrong = TrustedKeys.read(Path.of(words[3]));
    try (var client =
        WasmkilnClient.builder(words[0]).trustedKeys(wrong).withoutHostStore().build()) {
      client.compile(module, options);
      throw new AssertionError("took an artifact that nobody trusted signed");
    } catch (WasmkilnException.AttestationInvalid refused) {
      check(refused.requestId().length() == 16, "it names no request");
    }
    System.out.println("java checks what it should");
  }

  private interface Call {
    Object run() throws Exception;
  }

  private static void unusable(Call call) throws Exception {
    try {
      throw new AssertionError("took an argument of no use: " + call.run());
    } catch (IllegalArgumentException expected) {
      check(!expected.getMessage().isEmpty(), "it says nothing");
    }
  }

  private static void mismatched(Call call) throws Exception {
    try {
      throw new AssertionError("took a file that somebody wrote to: " + call.run());
    } catch (WasmkilnException.ArtifactMismatch expected) {
      check(!expected.getMessage().isEmpty(), "it says nothing");
    }
  }

  private static void check(boolean isTrue, String otherwise) {
    if (!isTrue) {
      throw new AssertionError(otherwise);
    }
  }
}
