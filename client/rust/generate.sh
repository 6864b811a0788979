#!/bin/sh
# Write src/generated/ from the protos of this repository, into the folder $1 or here. It needs protoc
# and cargo, and takes prost-build from the registry.
set -eu
cd "$(dirname "$0")"
mkdir -p "${1:-src/generated}"
to=$(realpath "${1:-src/generated}") protos=$(realpath ../../protos)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cat > "$work/Cargo.toml" <<'END'
[package]
name = "generate"
version = "0.0.0"
edition = "2021"
[[bin]]
name = "generate"
path = "main.rs"
[dependencies]
prost-build = { version = "0.12.6", default-features = false }
END
cat > "$work/main.rs" <<'END'
fn main() {
    let [to, protos] = [1, 2].map(|n| std::env::args().nth(n).unwrap());
    let files = ["google/rpc/status", "google/rpc/error_details", "wasmkiln/v1/module_service"];
    prost_build::Config::new()
        .out_dir(to)
        .compile_well_known_types()
        // rustdoc would take the examples there for tests.
        .disable_comments([".google.protobuf"])
        .btree_map(["."])
        .bytes([
            "CompileResponse.chunk",
            "CompileRequest.module",
            "LoadRequest.module",
            "UploadRequest.data",
        ])
        .compile_protos(&files.map(|file| format!("{protos}/{file}.proto")), &[protos])
        .unwrap();
}
END
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/target} \
    cargo run --quiet --manifest-path "$work/Cargo.toml" -- "$to" "$protos"
