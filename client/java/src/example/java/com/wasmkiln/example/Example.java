package com.wasmkiln.example;

import com.wasmkiln.client.Artifact;
import com.wasmkiln.client.CompileOptions;
import com.wasmkiln.client.TrustedKeys;
import com.wasmkiln.client.WasmkilnClient;
import com.wasmkiln.client.WasmkilnException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * Compiles a module twice, shows an error, and writes the artifact to a file.
 *
 * <pre>Example ADDRESS MODULE.wasm --key KEY.pem --engine ID --out FILE</pre>
 */
public final class Example {
  private static final byte[] NO_MODULE = {0, 'a', 's', 'm', 1, 0, 0, 0, -1};

  private Example() {}

  /** Run it. */
  public static void main(String[] words) {
    try {
      run(List.of(words));
    } catch (WasmkilnException failure) {
      System.out.printf("java error %s: %s%n", failure.reason(), failure.getMessage());
      System.exit(1);
    } catch (IOException | IllegalArgumentException failure) {
      System.out.printf("java error: %s%n", failure.getMessage());
      System.exit(1);
    }
  }

  private static void run(List<String> words) throws IOException {
    if (words.size() < 2) {
      throw new IllegalArgumentException(
          "usage: Example ADDRESS MODULE.wasm [--key KEY.pem] [--engine ID] [--out FILE]");
    }
    Map<String, String> flags = new HashMap<>();
    boolean isBytesOnly = words.contains("--no-host-store");
    List<String> rest =
        words.subList(2, words.size()).stream()
            .filter(each -> !each.equals("--no-host-store"))
            .toList();
    for (int at = 0; at + 1 < rest.size(); at += 2) {
      flags.put(rest.get(at), rest.get(at + 1));
    }
    var builder = WasmkilnClient.builder(words.get(0));
    if (flags.containsKey("--key")) {
      builder.trustedKeys(TrustedKeys.read(Path.of(flags.get("--key"))));
    }
    if (flags.containsKey("--ca")) {
      builder.tls(Path.of(flags.get("--ca")).toFile());
    }
    if (flags.containsKey("--token-file")) {
      builder.tokenFile(Path.of(flags.get("--token-file")));
    }
    if (isBytesOnly) {
      builder.withoutHostStore();
    }
    byte[] module = Files.readAllBytes(Path.of(words.get(1)));
    CompileOptions options = CompileOptions.defaults().engine(flags.getOrDefault("--engine", ""));
    try (WasmkilnClient client = builder.build()) {
      if (flags.containsKey("--digest")) {
        show(client.compileDigest(flags.get("--digest"), options), null);
        return;
      }
      show(client.compile(module, options), flags.get("--out"));
      show(client.compile(module, options), flags.get("--out"));
      try {
        client.compile(NO_MODULE, options);
      } catch (WasmkilnException.ModuleInvalid | WasmkilnException.NotWasm refused) {
        System.out.printf("java error %s: %s%n", refused.reason(), refused.getMessage());
      }
    }
  }

  private static void show(Artifact artifact, String out) throws IOException {
    try (artifact) {
      var header = artifact.header();
      byte[] code = artifact.bytes();
      String origin =
          header.getOrigin().name().replace("ORIGIN_", "").toLowerCase(Locale.ROOT)
              + (artifact.path().isPresent() ? ", a file of the host store" : "");
      System.out.printf(
          "java compiled sha256:%s with %s, %d bytes, from %s%n",
          header.getModuleSha256(), header.getEngine().getId(), code.length, origin);
      if (out != null) {
        Files.write(Path.of(out), code);
      }
    }
  }
}
