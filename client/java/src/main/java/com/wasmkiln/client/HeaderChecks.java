package com.wasmkiln.client;

import static com.wasmkiln.client.WasmkilnException.mismatch;

import com.wasmkiln.v1.ArtifactHeader;
import com.wasmkiln.v1.CompileRequest;
import com.wasmkiln.v1.Kind;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.Map;

/**
 * Compares a header with the call. A signature binds an artifact to its header, and not to the call:
 * whoever sits in between could answer with an artifact that counts no fuel.
 */
final class HeaderChecks {
  // Settings that artifacts of earlier daemons do not state, and what these artifacts have.
  private static final Map<String, String> UNSTATED =
      Map.of("strategy", "cranelift", "compiler", "cranelift", "collector", "drc");
  // The setting and the value that choose an engine's fast compiler.
  private static final Map<String, Map.Entry<String, String>> FAST =
      Map.of(
          "wasmtime", Map.entry("strategy", "winch"), "wasmer", Map.entry("compiler", "singlepass"));
  // A module's first eight bytes: magic number, version, and layer, which marks a component.
  private static final byte[] CORE = HexFormat.of().parseHex("0061736d01000000");
  private static final byte[] COMPONENT = HexFormat.of().parseHex("0061736d0d000100");

  private HeaderChecks() {}

  /** Throw ArtifactMismatch unless the header is about what the request asked for. */
  static void check(CompileRequest request, String digest, byte[] module, ArtifactHeader header) {
    var engine = header.getEngine();
    String full = engine.getName() + "-" + engine.getVersion();
    same("an artifact of module", digest, header.getModuleSha256());
    String asked = request.getEngine();
    if (!asked.isEmpty() && !asked.equals(engine.getName())) {
      same("engine", asked, full);
    }
    if (!engine.getId().equals(full)) {
      throw mismatch("the header calls the engine %s %s", full, engine.getId());
    }
    if (!request.getTarget().isEmpty()) {
      same("target", request.getTarget(), header.getTarget());
    }
    if (!request.getCpu().isEmpty()) {
      same("cpu", request.getCpu(), header.getCpu());
    }
    checkSettings(request.getSettingsMap(), header);
    Kind kind = kindOf(module);
    if (kind != Kind.KIND_UNSPECIFIED && kind != header.getKind()) {
      throw mismatch("asked for an artifact of kind %s, got one of %s", kind, header.getKind());
    }
    if (header.hasHostFile() && !request.getAcceptHostFile()) {
      throw mismatch("asked for the artifact's bytes, got a file's name");
    }
    if (header.getInlineArtifact().size() > request.getInlineLimitBytes()) {
      throw mismatch(
          "asked for at most %d bytes in the header, got %d",
          request.getInlineLimitBytes(), header.getInlineArtifact().size());
    }
    if (!header.getContentEncoding().isEmpty()) {
      throw mismatch(
          "got bytes in an encoding that was not asked for: %s", header.getContentEncoding());
    }
    var fast = FAST.get(engine.getName());
    boolean isMadeFast =
        fast != null && fast.getValue().equals(header.getChangedSettingsMap().get(fast.getKey()));
    if (header.getIsFast() != isMadeFast) {
      throw mismatch(
          "the header says is_fast=%s, and its settings the opposite", header.getIsFast());
    }
  }

  private static void checkSettings(Map<String, String> asked, ArtifactHeader header) {
    asked.forEach(
        (name, value) -> {
          String got = header.getSettingsMap().getOrDefault(name, UNSTATED.get(name));
          same("setting " + name.replace("%", "%%"), value, got == null ? "" : got);
        });
    // A setting that the call did not name has to have the engine's default.
    header
        .getChangedSettingsMap()
        .forEach(
            (name, value) -> {
              if (!value.equals(asked.get(name))) {
                throw mismatch(
                    "asked for setting %s as the engine has it, got %s", name, value);
              }
            });
  }

  private static void same(String what, String asked, String got) {
    if (!asked.equals(got)) {
      throw mismatch("asked for " + what + " %s, got %s", asked, got);
    }
  }

  private static Kind kindOf(byte[] module) {
    if (module == null || module.length < CORE.length) {
      return Kind.KIND_UNSPECIFIED;
    }
    byte[] start = Arrays.copyOf(module, CORE.length);
    if (Arrays.equals(start, CORE)) {
      return Kind.KIND_CORE_MODULE;
    }
    return Arrays.equals(start, COMPONENT) ? Kind.KIND_COMPONENT : Kind.KIND_UNSPECIFIED;
  }
}
