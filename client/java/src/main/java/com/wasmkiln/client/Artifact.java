package com.wasmkiln.client;

import static com.wasmkiln.client.WasmkilnException.mismatch;

import com.wasmkiln.v1.ArtifactHeader;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Optional;

/** An engine's native code for one module. Close it: it may hold a file. */
public final class Artifact implements AutoCloseable {
  private final ArtifactHeader header;
  private final byte[] bytes;
  private final HostFile file;

  Artifact(ArtifactHeader header, byte[] bytes, HostFile file) {
    this.header = header;
    this.bytes = bytes;
    this.file = file;
  }

  /** What the artifact is, with what it was made, and from where it came. */
  public ArtifactHeader header() {
    return header;
  }

  /**
   * The native code. Of a file of the host store, read the content and compare it with the header.
   *
   * @throws IOException if the file cannot be read
   * @throws WasmkilnException.ArtifactMismatch if its bytes are not those of the header
   */
  public byte[] bytes() throws IOException {
    if (file == null) {
      return bytes.clone();
    }
    byte[] content = file.read();
    checkBytes(header, content);
    return content;
  }

  /**
   * Throw unless the file is as it was when it was checked. Call it once an engine has mapped it, and
   * throw away what was loaded if it throws.
   *
   * @throws WasmkilnException.ArtifactMismatch if somebody wrote to the file or removed it
   */
  public void checkUnchanged() {
    if (file == null) {
      return;
    }
    try {
      file.checkUnchanged();
    } catch (HostFile.Useless | IOException changed) {
      throw mismatch("the file changed while it was loaded");
    }
  }

  /** Throw ArtifactMismatch unless the bytes are those of the header. */
  static void checkBytes(ArtifactHeader header, byte[] bytes) {
    if (bytes.length != header.getSizeBytes()) {
      throw mismatch(
          "the artifact ended after %d of %d bytes", bytes.length, header.getSizeBytes());
    }
    String actual = TrustedKeys.sha256(bytes);
    if (!actual.equals(header.getArtifactSha256())) {
      throw mismatch(
          "the artifact's bytes have the SHA-256 %s, its header says %s",
          actual, header.getArtifactSha256());
    }
  }

  /**
   * A file of the host store that an engine can map; empty where the artifact is in memory. The
   * daemon may remove it at any time: what is mapped by then stays.
   */
  public Optional<Path> path() {
    return Optional.ofNullable(file).map(HostFile::path);
  }

  /** Let go of the file. */
  @Override
  public void close() throws IOException {
    if (file != null) {
      file.close();
    }
  }
}
