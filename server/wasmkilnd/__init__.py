"""The wasmkiln daemon: validates, compiles and caches WebAssembly modules."""
