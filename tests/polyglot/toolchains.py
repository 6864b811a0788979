"""What each language needs to build and run its client, and the Debian packages that have it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.programs import ROOT
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
        "rust": {
            "cargo": "cargo",
            "rustc": "rustc",
            "rustdoc": "rustc",
            "cargo-clippy": "rust-clippy",
            "cargo-fmt": "rustfmt",
            "gcc": "gcc",
        },
    },
    "POLYGLOT",
)
BUILT = ROOT / ".work" / "polyglot"
"""Where each language has a folder for what it builds."""
# The crate's dependencies, as cargo resolves them among what Debian has.
CRATES = Path(__file__).with_name("crates.txt")
_REGISTRY = "usr/share/cargo/registry"


def crates() -> Path:
    """Return a folder of crates, and fill it first if it is not there.

    It has Debian's packages of them, unpacked: to install them would bring hundreds of others.
    """
    names = CRATES.read_text()
    folder = BUILT / "crates" / hashlib.sha256(names.encode()).hexdigest()[:16]
    if not folder.exists():
        unfinished = BUILT / "crates" / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        if problem := _download(names.split(), unfinished):
            LANGUAGES.give_up(f"cannot fetch the crates of Rust's client: {problem}")
        for package in unfinished.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, unfinished], check=True)
            package.unlink()
        unfinished.rename(folder)
    return folder / _REGISTRY


def _download(packages: list[str], folder: Path) -> str:
    """Download packages. Return "" or why that was not possible."""
    if shutil.which("apt-get") is None:
        return "this system has no apt-get"
    # Lists of its own: nobody but root can bring those of the system up to date.
    lists = folder.parent / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={lists}"]
    for words in (["update"], ["download", *packages]):
        done = subprocess.run(
            [*apt, *words], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"apt-get {words[0]} says: {done.stderr.strip()}"
    return ""


if __name__ == "__main__":
    if problem := LANGUAGES.install():
        sys.exit(f"make test-polyglot: {problem}")
    crates()
