/**
 * A client of a wasmkiln daemon, which compiles WebAssembly modules once and serves the native code
 * to every service.
 *
 * <p>{@link com.wasmkiln.client.WasmkilnClient} makes the calls. Messages of the API are in {@code
 * com.wasmkiln.v1}, generated from the protos.
 */
package com.wasmkiln.client;
