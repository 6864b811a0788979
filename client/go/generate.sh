#!/bin/sh
# Write wasmkilnpb/ from the protos of this repository, into the folder $1 or here.
set -eu
cd "$(dirname "$0")"
to=module=github.com/wasmkiln/wasmkiln/client/go/wasmkilnpb
protoc -I ../../protos --go_out="${1:-wasmkilnpb}" --go_opt="$to" \
    --go-grpc_out="${1:-wasmkilnpb}" --go-grpc_opt="$to" ../../protos/wasmkiln/v1/*.proto
