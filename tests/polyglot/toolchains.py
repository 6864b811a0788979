"""What each language needs to build and run its client, and the Debian packages that have it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# A need is a program on PATH, or a pattern of a file. It is there however it was installed.
PROTOC = {"protoc": "protobuf-compiler"}
NEEDS = {
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
}
EVERYTHING = "all"


def missing(*languages: str) -> dict[str, str]:
    """Return what these languages lack, with the packages that have it."""
    return {
        need: package
        for language in languages
        for need, package in NEEDS[language].items()
        if not _is_there(need)
    }


def lacks(language: str) -> str:
    """Return "" if a language can be built, else a sentence that says what is missing."""
    if not (needed := missing(language)):
        return ""
    packages = " ".join(sorted(set(needed.values())))
    return f"cannot build for {language}: missing {', '.join(needed)}; apt-get install {packages}"


def must_be_there() -> bool:
    """Return whether a missing toolchain is a failure."""
    return os.environ.get("POLYGLOT") == EVERYTHING


def install(languages: Sequence[str]) -> str:
    """Install what is missing. Return "" or a sentence that says why it is still missing."""
    needed = missing(*languages)
    if not needed:
        return ""
    packages = sorted(set(needed.values()))
    what = f"cannot install {', '.join(needed)}"
    if shutil.which("apt-get") is None:
        return f"{what}: this system has no apt-get; install them in its own way"
    if os.geteuid() != 0:
        return f"{what}: only root can; run: sudo apt-get install {' '.join(packages)}"
    print(f"installing {' '.join(packages)}", flush=True)
    words = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=600"]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [*words, *step], env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"{what}: apt-get {step[0]} says: {''.join(last)}"
    left = missing(*languages)
    return f"cannot find {', '.join(left)}, though apt-get has installed it" if left else ""


def _is_there(need: str) -> bool:
    return Path(need).exists() if need.startswith("/") else shutil.which(need) is not None


if __name__ == "__main__":
    if problem := install(sys.argv[1:] or list(NEEDS)):
        sys.exit(f"make test-polyglot: {problem}")
