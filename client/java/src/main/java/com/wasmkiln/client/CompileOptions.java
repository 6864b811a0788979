package com.wasmkiln.client;

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
 * @param isBackground whether the call waits behind all others
 * @param timeout how long the call may take; null for the client's own
 */
public record CompileOptions(
    String engine,
    String target,
    String cpu,
    Map<String, String> settings,
    boolean isBackground,
    Duration timeout) {

  /** Copy the settings. */
  public CompileOptions {
    settings = Map.copyOf(settings);
  }

  /** Return options for the default engine with its defaults, on the daemon's machine. */
  public static CompileOptions defaults() {
    return new CompileOptions("", "", "", Map.of(), false, null);
  }

  /** Return these options with an engine. */
  public CompileOptions engine(String engine) {
    return new CompileOptions(engine, target, cpu, settings, isBackground, timeout);
  }

  /** Return these options with a target. */
  public CompileOptions target(String target) {
    return new CompileOptions(engine, target, cpu, settings, isBackground, timeout);
  }

  /** Return these options with a level of CPU features. */
  public CompileOptions cpu(String cpu) {
    return new CompileOptions(engine, target, cpu, settings, isBackground, timeout);
  }

  /** Return these options with settings of the engine. */
  public CompileOptions settings(Map<String, String> settings) {
    return new CompileOptions(engine, target, cpu, settings, isBackground, timeout);
  }

  /** Return these options for a call that waits behind all others. */
  public CompileOptions background() {
    return new CompileOptions(engine, target, cpu, settings, true, timeout);
  }

  /** Return these options with a limit of time. */
  public CompileOptions timeout(Duration timeout) {
    return new CompileOptions(engine, target, cpu, settings, isBackground, timeout);
  }
}
