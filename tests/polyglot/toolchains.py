"""What each language needs to build and run its client, and the Debian packages that have it."""

from __future__ import annotations

import sys

from tests.toolchains import Toolchains

PROTOC = {"protoc": "protobuf-compiler"}
LANGUAGES = Toolchains(
    {
        "go": {
            "go": "golang-go",
            **PROTOC,
            "protoc-gen-go": "protoc-gen-go-1-5",
            "protoc-gen-go-grpc": "protoc-gen-go-grpc",
            "/usr/share/gocode/src/google.golang.org/grpc/clientconn.go": "golang-google-grpc-dev",
            "gcc": "gcc",
        },
        "cpp": {
            "g++": "g++",
            "cmake": "cmake",
            "make": "make",
            "pkg-config": "pkg-config",
            **PROTOC,
            "grpc_cpp_plugin": "protobuf-compiler-grpc",
            "/usr/include/grpcpp/grpcpp.h": "libgrpc++-dev",
            "/usr/include/google/protobuf/message.h": "libprotobuf-dev",
            "/usr/include/openssl/evp.h": "libssl-dev",
        },
        "java": {
            "javac": "default-jdk-headless",
            "jar": "default-jdk-headless",
            **PROTOC,
            "grpc_java_plugin": "protobuf-compiler-grpc-java-plugin",
            "/usr/share/java/grpc-api.jar": "libgrpc-java",
            "/usr/share/java/protobuf.jar": "libprotobuf-java",
            "/usr/share/java/netty-tcnative.jar": "libnetty-tcnative-java",
        },
        "node": {"node": "nodejs", "npm": "npm"},
        "c": {"gcc": "gcc"},
    },
    "POLYGLOT",
)


if __name__ == "__main__":
    if problem := LANGUAGES.install():
        sys.exit(f"make test-polyglot: {problem}")
