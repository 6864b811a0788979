import com.wasmkiln.client.CompileOptions;
import com.wasmkiln.client.TrustedKeys;
import com.wasmkiln.client.WasmkilnClient;
import com.wasmkiln.client.WasmkilnException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Asks a server for an artifact again and again, and says what it takes: bytes or a file. */
public final class Asks {
  public static void main(String[] words) throws Exception {
    byte[] module = Files.readAllBytes(Path.of(words[1]));
    CompileOptions options = CompileOptions.defaults().engine(words[2]);
    TrustedKeys keys = TrustedKeys.read(Path.of(words[3]));
    for (int left = Integer.parseInt(words[4]); left > 0; left--) {
      // A new one each time: after a file that does not count, a client asks for none for a while.
      var builder = WasmkilnClient.builder(words[0]).trustedKeys(keys);
      if (words[5].equals("bytes")) {
        builder.withoutHostStore();
      }
      try (var client = builder.build();
          var artifact = client.compile(module, options)) {
        System.out.println(artifact.path().isPresent() ? "file" : "bytes");
      } catch (WasmkilnException refused) {
        System.out.println(refused.reason() + ": " + refused.getMessage().replace('\n', ' '));
      }
    }
  }
}
