package com.wasmkiln.client;

import com.wasmkiln.v1.ArtifactHeader;

/**
 * An engine's native code for one module, as the client has checked it.
 *
 * @param header what the artifact is, with what it was made, and from where it came
 * @param bytes the native code
 */
public record Artifact(ArtifactHeader header, byte[] bytes) {}
