package com.wasmkiln.client;

import com.google.protobuf.ByteString;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.Map;

/**
 * For what to compile. Immutable; each method returns a copy.
 *
 * <pre>{@code CompileOptions.defaults().engine("wasmtime").background()}</pre>
 *
 * @param engine an id ("wasmtime-50.0.1"), or a name ("wasmtime") for its newest version; empty for
 *     the daemon's default
 * @param target an LLVM-style triple; empty for the daemon's own machine
 * @param cpu a level such as "x86-64-v3"; empty for the default
 * @param settings options of the engine, with names and values as the capabilities list them
 * @param compatibility what the host's own engine says of itself; empty to name what to compile for
 * @param isBackground whether the call waits behind all others
 * @param timeout how long the call may take; null for the client's own
 * @param skipsCacheLookup whether the daemon compiles even if it has the artifact
 * @param acceptsFast whether code of the engine's fast compiler will do, while the daemon compiles
 *     the optimised code behind other work
 */
public record CompileOptions(
    String engine,
    String target,
    String cpu,
    Map<String, String> settings,
    ByteString compatibility,
    boolean isBackground,
    Duration timeout,
    boolean skipsCacheLookup,
    boolean acceptsFast) {
  private static final ByteString ZERO = ByteString.copyFromUtf8("\0");
  private static final ByteString WASM = ByteString.copyFromUtf8("\0asm");
  private static final ByteString ELF = ByteString.copyFromUtf8("\177ELF\2");
  private static final ByteString NAME = ByteString.copyFromUtf8(".wasmtime.engine\0");

  /** Copy the settings. */
  public CompileOptions {
    settings = Map.copyOf(settings);
  }

  /** Make options whose last two are not set. */
  public CompileOptions(
      String engine,
      String target,
      String cpu,
      Map<String, String> settings,
      ByteString compatibility,
      boolean isBackground,
      Duration timeout) {
    this(engine, target, cpu, settings, compatibility, isBackground, timeout, false, false);
  }

  /** Return options for the default engine with its defaults, on the daemon's machine. */
  public static CompileOptions defaults() {
    return new CompileOptions("", "", "", Map.of(), ByteString.EMPTY, false, null);
  }

  /** Return these options with an engine. */
  public CompileOptions engine(String engine) {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, skipsCacheLookup,
        acceptsFast);
  }

  /** Return these options with a target. */
  public CompileOptions target(String target) {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, skipsCacheLookup,
        acceptsFast);
  }

  /** Return these options with a level of CPU features. */
  public CompileOptions cpu(String cpu) {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, skipsCacheLookup,
        acceptsFast);
  }

  /** Return these options with settings of the engine. */
  public CompileOptions settings(Map<String, String> settings) {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, skipsCacheLookup,
        acceptsFast);
  }

  /**
   * Return these options for the host's own engine: the daemon then chooses code that it loads.
   * Leave out engine, target, cpu and settings.
   *
   * @param compiled anything that the host's own wasmtime compiled, such as the empty module, or
   *     the section {@code .wasmtime.engine} of it
   * @throws IllegalArgumentException if wasmtime did not compile these bytes
   */
  public CompileOptions compatibility(byte[] compiled) {
    ByteString compatibility = sectionOf(compiled);
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, skipsCacheLookup,
        acceptsFast);
  }

  /** Return these options for a call that waits behind all others. */
  public CompileOptions background() {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, true, timeout, skipsCacheLookup,
        acceptsFast);
  }

  /** Return these options with a limit of time. */
  public CompileOptions timeout(Duration timeout) {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, skipsCacheLookup,
        acceptsFast);
  }

  /** Return these options for a call that has the daemon compile even if it has the artifact. */
  public CompileOptions skipCacheLookup() {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, true, acceptsFast);
  }

  /** Return these options for code that may be of the engine's fast compiler: header.is_fast. */
  public CompileOptions acceptFast() {
    return new CompileOptions(
        engine, target, cpu, settings, compatibility, isBackground, timeout, skipsCacheLookup, true);
  }

  /** Return the section in which wasmtime says for which engine; a section as it is. */
  private static ByteString sectionOf(byte[] compiled) {
    ByteString bytes = ByteString.copyFrom(compiled);
    if (bytes.startsWith(ZERO) && !bytes.startsWith(WASM)) {
      return bytes;
    }
    try {
      if (!bytes.startsWith(ELF)) {
        throw new IndexOutOfBoundsException();
      }
      ByteBuffer numbers = ByteBuffer.wrap(compiled).order(ByteOrder.LITTLE_ENDIAN);
      int table = Math.toIntExact(numbers.getLong(0x28));
      int size = numbers.getShort(0x3a);
      int names = Math.toIntExact(numbers.getLong(table + numbers.getShort(0x3e) * size + 0x18));
      for (int left = numbers.getShort(0x3c), row = table; left > 0; left--, row += size) {
        int from = Math.toIntExact(numbers.getLong(row + 0x18));
        int end = Math.toIntExact(from + numbers.getLong(row + 0x20));
        if (bytes.substring(names + numbers.getInt(row)).startsWith(NAME) && end > from) {
          return bytes.substring(from, end);
        }
      }
    } catch (IndexOutOfBoundsException | ArithmeticException other) {
      // Damaged, or no artifact.
    }
    throw new IllegalArgumentException(
        "cannot use compatibility: these bytes are nothing that wasmtime compiled");
  }
}
