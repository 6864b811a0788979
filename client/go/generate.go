package wasmkiln

// The messages and the service lie in wasmkilnpb. They are generated from ../../protos, and in the
// repository so that `go get` works. `go generate` writes them anew; it needs protoc,
// protoc-gen-go 1.33 and protoc-gen-go-grpc 1.64, of Debian 13.
//
//go:generate sh generate.sh
