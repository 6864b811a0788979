package com.wasmkiln.client;

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
   * The native code. Of a file of the host store, read the content.
   *
   * @throws IOException if the file cannot be read
   */
  public byte[] bytes() throws IOException {
    return file == null ? bytes.clone() : file.read();
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
