package com.wasmkiln.client;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.*;
import com.wasmkiln.v1.ArtifactHeader;
import com.wasmkiln.v1.Kind;
import io.grpc.Status;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.*;
import java.security.spec.X509EncodedKeySpec;
import java.util.*;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** The Ed25519 public keys that a caller trusts, and what they have to have signed. Immutable. */
public final class TrustedKeys {
  // Of an Ed25519 public key, at the end of its DER.
  private static final int KEY_BYTES = 32;
  private static final Pattern PEM =
      Pattern.compile("-----BEGIN PUBLIC KEY-----([^-]*)-----END PUBLIC KEY-----");
  private static final Pattern REVOKED = Pattern.compile("\"key_id\"\\s*:\\s*\"([0-9a-f]{64})\"");
  private static final String PAYLOAD_TYPE = "application/vnd.in-toto+json";
  // docs/how-to/verify.md: a daemon writes it byte for byte so, and nothing has to parse
  // what nobody has signed.
  private static final Pattern ENVELOPE =
      Pattern.compile(
          "\\{\"payload\":\"([^\"]*)\",\"payloadType\":\"application/vnd\\.in-toto\\+json\","
              + "\"signatures\":\\[\\{\"keyid\":\"([0-9a-f]{64})\",\"sig\":\"([^\"]*)\"}]}");
  private static final Map<Kind, String> KINDS =
      Map.of(Kind.KIND_CORE_MODULE, "core", Kind.KIND_COMPONENT, "component");

  private final Map<String, PublicKey> keys;

  private TrustedKeys(Map<String, PublicKey> keys) {
    this.keys = Map.copyOf(keys);
  }

  /** Return no keys: the client then checks digests and no signature. */
  public static TrustedKeys none() {
    return new TrustedKeys(Map.of());
  }

  /**
   * Read keys in PEM, one or several.
   *
   * @throws IllegalArgumentException if the text holds no key
   */
  public static TrustedKeys parse(String text) {
    Map<String, PublicKey> keys = new HashMap<>();
    try {
      for (Matcher blocks = PEM.matcher(text); blocks.find(); ) {
        add(keys, Base64.getMimeDecoder().decode(blocks.group(1)));
      }
    } catch (GeneralSecurityException | IllegalArgumentException none) {
      keys.clear();
    }
    if (keys.isEmpty()) {
      // Without a cause, which may quote a private key.
      throw new IllegalArgumentException("not an Ed25519 public key: expected PEM");
    }
    return new TrustedKeys(keys);
  }

  /**
   * Read the keys in files, and in the files {@code *.pem} of folders. Of folders, the revocations
   * in {@code revoked/} count too, which is in the folder or, where that is called {@code trusted},
   * beside it.
   *
   * @throws IOException if a file cannot be read
   * @throws IllegalArgumentException if one holds no key, or all keys are revoked
   */
  public static TrustedKeys read(Path... paths) throws IOException {
    Map<String, PublicKey> keys = new HashMap<>();
    Set<String> revoked = new HashSet<>();
    for (Path each : paths) {
      Path path = each.toAbsolutePath().normalize();
      for (Path file : Files.isDirectory(path) ? filesOf(path, ".pem") : List.of(path)) {
        try {
          keys.putAll(parse(Files.readString(file)).keys);
        } catch (IllegalArgumentException none) {
          throw new IllegalArgumentException("cannot read " + file + ": " + none.getMessage());
        }
      }
      revoked.addAll(revokedIn(path.resolve("revoked")));
      if (path.endsWith("trusted")) {
        revoked.addAll(revokedIn(path.resolveSibling("revoked")));
      }
    }
    keys.keySet().removeAll(revoked);
    if (keys.isEmpty()) {
      // With no key nothing would be checked.
      throw new IllegalArgumentException(
          "cannot read trusted keys: there is none that counts in " + Arrays.toString(paths));
    }
    return new TrustedKeys(keys);
  }

  /** Return a SHA-256 in lowercase hex. */
  static String sha256(byte[] content) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(content));
    } catch (GeneralSecurityException impossible) {
      throw new IllegalStateException(impossible);
    }
  }

  /**
   * Throw AttestationInvalid unless one of the keys, if there are any, signed that the artifact is
   * what the header says. Somebody else compares the bytes with the header.
   */
  void check(ArtifactHeader header) {
    if (keys.isEmpty()) {
      return;
    }
    Matcher envelope = ENVELOPE.matcher(header.getAttestation().toStringUtf8());
    if (!envelope.matches()) {
      throw refused("unsigned", "", "the artifact has no attestation as wasmkiln writes it");
    }
    String signer = envelope.group(2);
    PublicKey key = keys.get(signer);
    if (key == null) {
      throw refused(
          "stranger", signer, "the attestation is signed by a key that is not trusted: " + signer);
    }
    String problem;
    try {
      byte[] payload = Base64.getDecoder().decode(envelope.group(1));
      String start = "DSSEv1 " + PAYLOAD_TYPE.length() + " " + PAYLOAD_TYPE;
      Signature signature = Signature.getInstance("Ed25519");
      signature.initVerify(key);
      signature.update((start + " " + payload.length + " ").getBytes(UTF_8));
      signature.update(payload);
      problem =
          signature.verify(Base64.getDecoder().decode(envelope.group(3)))
              ? difference(header, JsonParser.parseString(new String(payload, UTF_8)))
              : "signature is not by the key that it names";
    } catch (GeneralSecurityException | RuntimeException malformed) {
      problem = "statement is not about an artifact";
    }
    if (!problem.isEmpty()) {
      throw refused("mismatch", signer, "the attestation's " + problem);
    }
  }

  /** Return what a statement says otherwise than the header, or an empty string. */
  private static String difference(ArtifactHeader header, JsonElement statement) {
    String made = "predicate.buildDefinition.";
    String given = made + "externalParameters.";
    var engine = header.getEngine();
    Map<String, String> madeBy =
        Map.of(
            "name", engine.getName(),
            "version", engine.getVersion(),
            "coreVersion", engine.getCoreVersion(),
            "compiler", engine.getCompiler());
    Map<String, Object> due =
        Map.ofEntries(
            Map.entry("_type", "https://in-toto.io/Statement/v1"),
            Map.entry("predicateType", "https://slsa.dev/provenance/v1"),
            Map.entry("subject.digest.sha256", header.getArtifactSha256()),
            Map.entry(made + "buildType", "urn:wasmkiln:compile:v1"),
            Map.entry(made + "resolvedDependencies.digest.sha256", header.getModuleSha256()),
            Map.entry(given + "engine", madeBy),
            Map.entry(given + "fingerprint", header.getFingerprint()),
            Map.entry(given + "kind", KINDS.getOrDefault(header.getKind(), "")),
            Map.entry(given + "target", header.getTarget()),
            Map.entry(given + "cpu", header.getCpu()),
            Map.entry(given + "settings", header.getSettingsMap()),
            Map.entry(given + "changedSettings", header.getChangedSettingsMap()));
    Gson gson = new Gson();
    return due.keySet().stream()
        .filter(path -> !gson.toJsonTree(due.get(path)).equals(at(statement, path)))
        .findFirst()
        .map(path -> path + " is another than the header's")
        .orElse("");
  }

  /** Return what a path leads to: by the keys of objects, and by lists of one element. */
  private static JsonElement at(JsonElement value, String path) {
    for (String key : path.split("\\.")) {
      value = value.getAsJsonObject().get(key);
      if (value instanceof JsonArray list && list.size() == 1) {
        value = list.get(0);
      }
    }
    return value;
  }

  private static WasmkilnException refused(String cause, String signer, String message) {
    var metadata = Map.of("cause", cause, "key_id", signer);
    return new WasmkilnException(
        Status.Code.DATA_LOSS, "ATTESTATION_INVALID", message, metadata);
  }

  private static void add(Map<String, PublicKey> keys, byte[] der) throws GeneralSecurityException {
    PublicKey key = KeyFactory.getInstance("Ed25519").generatePublic(new X509EncodedKeySpec(der));
    byte[] encoded = key.getEncoded();
    keys.put(
        sha256(Arrays.copyOfRange(encoded, encoded.length - KEY_BYTES, encoded.length)), key);
  }

  private static Set<String> revokedIn(Path folder) throws IOException {
    Set<String> found = new HashSet<>();
    for (Path file : Files.isDirectory(folder) ? filesOf(folder, ".json") : List.<Path>of()) {
      Matcher named = REVOKED.matcher(Files.readString(file));
      if (!named.find()) {
        throw new IllegalArgumentException(
            "cannot read " + file + ": it does not say which key is revoked, as key_id");
      }
      found.add(named.group(1));
    }
    return found;
  }

  private static List<Path> filesOf(Path folder, String ending) throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.filter(each -> each.toString().endsWith(ending)).toList();
    }
  }
}
