"""Client of the wasmkiln daemon."""
