package com.wasmkiln.client;

import static com.wasmkiln.client.WasmkilnException.untrusted;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.wasmkiln.v1.ArtifactHeader;
import com.wasmkiln.v1.Kind;
import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.PublicKey;
import java.security.Signature;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;

/** Checks the DSSE envelope of an artifact; docs/reference/attestation.md describes the format. */
final class Attestation {
  private static final String PAYLOAD_TYPE = "application/vnd.in-toto+json";
  private static final String STATEMENT_TYPE = "https://in-toto.io/Statement/v1";
  private static final String PREDICATE_TYPE = "https://slsa.dev/provenance/v1";
  private static final String BUILD_TYPE = "urn:wasmkiln:compile:v1";
  private static final String MALFORMED =
      "cannot read the attestation: it is not a DSSE envelope as wasmkiln writes it";
  private static final String UNSIGNED = "unsigned";
  private static final String STRANGER = "stranger";
  private static final String MISMATCH = "mismatch";

  private Attestation() {}

  /**
   * Throw AttestationInvalid unless a trusted key signed that the artifact is what the header says.
   * Somebody else compares the header with the call, and the bytes with the header.
   */
  static void verify(ArtifactHeader header, TrustedKeys trusted) {
    if (header.getAttestation().isEmpty()) {
      throw untrusted(UNSIGNED, "", "the artifact has no attestation");
    }
    String signer;
    String type;
    byte[] payload;
    byte[] signature;
    try {
      JsonObject envelope =
          JsonParser.parseString(header.getAttestation().toStringUtf8()).getAsJsonObject();
      JsonObject only = single(envelope.getAsJsonArray("signatures"));
      signer = text(only, "keyid");
      type = text(envelope, "payloadType");
      payload = Base64.getDecoder().decode(text(envelope, "payload"));
      signature = Base64.getDecoder().decode(text(only, "sig"));
    } catch (JsonParseException | IllegalStateException | IllegalArgumentException
        | ClassCastException | NullPointerException | UnsupportedOperationException malformed) {
      throw untrusted(UNSIGNED, "", MALFORMED);
    }
    PublicKey key = trusted.get(signer);
    if (key == null) {
      throw untrusted(
          STRANGER,
          signer,
          "the attestation is signed by a key that is not trusted: "
              + WasmkilnException.quoted(signer));
    }
    if (!type.equals(PAYLOAD_TYPE)) {
      throw untrusted(MISMATCH, signer, "the attestation's payload is of another type");
    }
    if (!isSigned(key, payload, signature)) {
      throw untrusted(
          MISMATCH, signer, "the attestation's signature is not by the key that it names");
    }
    compare(header, payload, signer);
  }

  private static boolean isSigned(PublicKey key, byte[] payload, byte[] signature) {
    ByteArrayOutputStream signed = new ByteArrayOutputStream();
    signed.writeBytes(
        TrustedKeys.utf8(
            String.format("DSSEv1 %d %s %d ", PAYLOAD_TYPE.length(), PAYLOAD_TYPE, payload.length)));
    signed.writeBytes(payload);
    try {
      Signature verifier = Signature.getInstance("Ed25519");
      verifier.initVerify(key);
      verifier.update(signed.toByteArray());
      return verifier.verify(signature);
    } catch (GeneralSecurityException none) {
      return false;
    }
  }

  private static void compare(ArtifactHeader header, byte[] payload, String signer) {
    String differs;
    try {
      String json = new String(payload, StandardCharsets.UTF_8);
      differs = difference(header, JsonParser.parseString(json).getAsJsonObject());
    } catch (JsonParseException | IllegalStateException | ClassCastException
        | NullPointerException | UnsupportedOperationException malformed) {
      throw untrusted(
          MISMATCH, signer, "the attestation's statement is not about an artifact");
    }
    if (!differs.isEmpty()) {
      throw untrusted(MISMATCH, signer, "the attestation is about another " + differs);
    }
  }

  /** Return what the statement says otherwise than the header, or an empty string. */
  private static String difference(ArtifactHeader header, JsonObject statement) {
    JsonObject definition =
        statement.getAsJsonObject("predicate").getAsJsonObject("buildDefinition");
    JsonObject given = definition.getAsJsonObject("externalParameters");
    var engine = header.getEngine();
    Map<String, String> made =
        Map.of(
            "name", engine.getName(),
            "version", engine.getVersion(),
            "coreVersion", engine.getCoreVersion(),
            "compiler", engine.getCompiler());
    if (!text(statement, "_type").equals(STATEMENT_TYPE)
        || !text(statement, "predicateType").equals(PREDICATE_TYPE)
        || !text(definition, "buildType").equals(BUILD_TYPE)) {
      return "kind of thing";
    }
    if (!digest(statement.getAsJsonArray("subject")).equals(header.getArtifactSha256())) {
      return "artifact";
    }
    if (!digest(definition.getAsJsonArray("resolvedDependencies"))
        .equals(header.getModuleSha256())) {
      return "module";
    }
    if (!text(given, "fingerprint").equals(header.getFingerprint())) {
      return "fingerprint";
    }
    if (!text(given, "kind").equals(kindName(header.getKind()))) {
      return "kind";
    }
    if (!texts(given, "engine").equals(made)) {
      return "engine";
    }
    if (!text(given, "target").equals(header.getTarget())) {
      return "target";
    }
    if (!text(given, "cpu").equals(header.getCpu())) {
      return "cpu";
    }
    if (!texts(given, "settings").equals(header.getSettingsMap())) {
      return "settings";
    }
    if (!texts(given, "changedSettings").equals(header.getChangedSettingsMap())) {
      return "changed settings";
    }
    return "";
  }

  private static String kindName(Kind kind) {
    return switch (kind) {
      case KIND_CORE_MODULE -> "core";
      case KIND_COMPONENT -> "component";
      default -> "";
    };
  }

  private static JsonObject single(JsonArray list) {
    if (list.size() != 1) {
      throw new IllegalStateException("expected one element");
    }
    return list.get(0).getAsJsonObject();
  }

  private static String digest(JsonArray list) {
    return text(single(list).getAsJsonObject("digest"), "sha256");
  }

  private static String text(JsonObject object, String name) {
    JsonElement value = object.get(name);
    if (!value.getAsJsonPrimitive().isString()) {
      throw new IllegalStateException("expected a string");
    }
    return value.getAsString();
  }

  private static Map<String, String> texts(JsonObject object, String name) {
    Map<String, String> found = new HashMap<>();
    JsonObject values = object.getAsJsonObject(name);
    for (String each : values.keySet()) {
      found.put(each, text(values, each));
    }
    return found;
  }
}
