package com.wasmkiln.client;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.security.PublicKey;
import java.security.spec.X509EncodedKeySpec;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** The Ed25519 public keys that a caller trusts. Immutable. */
public final class TrustedKeys {
  private static final int KEY_BYTES = 32;
  // The start of every Ed25519 public key in DER (RFC 8410); the key follows.
  private static final byte[] PREFIX = HexFormat.of().parseHex("302a300506032b6570032100");
  private static final Pattern PEM =
      Pattern.compile("-----BEGIN PUBLIC KEY-----(.*?)-----END PUBLIC KEY-----", Pattern.DOTALL);

  private final Map<String, PublicKey> keys;

  private TrustedKeys(Map<String, PublicKey> keys) {
    this.keys = Map.copyOf(keys);
  }

  /** Return no keys: the client then checks digests and no signature. */
  public static TrustedKeys none() {
    return new TrustedKeys(Map.of());
  }

  /**
   * Read keys: PEM, one or several, or a single key of 32 bytes in hex or base64.
   *
   * @throws IllegalArgumentException if the text holds no key
   */
  public static TrustedKeys parse(String text) {
    Map<String, PublicKey> keys = new HashMap<>();
    for (byte[] raw : rawKeys(text.strip())) {
      keys.put(sha256(raw), publicKey(raw));
    }
    return new TrustedKeys(keys);
  }

  /**
   * Read the keys in files, and in the files {@code *.pem} of folders.
   *
   * @throws IOException if a file cannot be read
   * @throws IllegalArgumentException if one holds no key
   */
  public static TrustedKeys read(Path... paths) throws IOException {
    Map<String, PublicKey> keys = new HashMap<>();
    for (Path path : paths) {
      for (Path file : filesOf(path)) {
        try {
          keys.putAll(parse(Files.readString(file)).keys);
        } catch (IllegalArgumentException none) {
          throw new IllegalArgumentException(
              "cannot read " + file + ": " + none.getMessage(), none);
        }
      }
    }
    if (keys.isEmpty()) {
      throw new IllegalArgumentException(
          "cannot read trusted keys: there is none in " + Arrays.toString(paths));
    }
    return new TrustedKeys(keys);
  }

  boolean isEmpty() {
    return keys.isEmpty();
  }

  /** Return the key with this id, or null where it is not trusted. */
  PublicKey get(String keyId) {
    return keys.get(keyId);
  }

  private static List<Path> filesOf(Path path) throws IOException {
    if (!Files.isDirectory(path)) {
      return List.of(path);
    }
    try (Stream<Path> files = Files.list(path)) {
      return files.filter(each -> each.toString().endsWith(".pem")).sorted().toList();
    }
  }

  private static List<byte[]> rawKeys(String text) {
    List<byte[]> found = new ArrayList<>();
    Matcher blocks = PEM.matcher(text);
    while (blocks.find()) {
      byte[] der = base64(blocks.group(1).replaceAll("\\s", ""));
      if (der.length != PREFIX.length + KEY_BYTES
          || !Arrays.equals(PREFIX, Arrays.copyOf(der, PREFIX.length))) {
        throw noKey();
      }
      found.add(Arrays.copyOfRange(der, PREFIX.length, der.length));
    }
    if (found.isEmpty()) {
      byte[] raw = text.matches("[0-9a-fA-F]{64}") ? HexFormat.of().parseHex(text) : base64(text);
      if (raw.length != KEY_BYTES) {
        throw noKey();
      }
      found.add(raw);
    }
    return found;
  }

  private static byte[] base64(String text) {
    try {
      return Base64.getDecoder().decode(text);
    } catch (IllegalArgumentException none) {
      return new byte[0];
    }
  }

  private static PublicKey publicKey(byte[] raw) {
    byte[] der = Arrays.copyOf(PREFIX, PREFIX.length + KEY_BYTES);
    System.arraycopy(raw, 0, der, PREFIX.length, KEY_BYTES);
    try {
      return KeyFactory.getInstance("Ed25519").generatePublic(new X509EncodedKeySpec(der));
    } catch (GeneralSecurityException none) {
      throw noKey();
    }
  }

  /** Return the exception for a text that is no key. It does not quote what may be a private key. */
  private static IllegalArgumentException noKey() {
    return new IllegalArgumentException(
        "not an Ed25519 public key: expected 64 hex digits, base64 of 32 bytes, or PEM");
  }

  /** Return a SHA-256 in lowercase hex. */
  static String sha256(byte[] content) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(content));
    } catch (NoSuchAlgorithmException impossible) {
      throw new IllegalStateException(impossible);
    }
  }

  /** Return a text as UTF-8. */
  static byte[] utf8(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }
}
