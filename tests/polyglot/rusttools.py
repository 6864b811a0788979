"""Cargo, with Debian's crates, and a workspace with Rust's client and the programs that use it."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.programs import ROOT, installed_engines
from tests.polyglot.kiln import FULL_ENGINE, run
from tests.polyglot.toolchains import crates

CLIENT = ROOT / "client" / "rust"
HERE = Path(__file__).parent
# Where a cargo finds its crates, wherever its project lies. What is not there is not needed.
_CONFIGURATION = """[source.crates-io]
replace-with = "debian"
[source.debian]
directory = "{crates}"
[net]
offline = true
[env]
WASMTIME_LIBRARY = "{library}"
[profile.dev]
debug = false
incremental = false
[profile.dev.package]
{optimised}
"""
# A digest of 30 MB takes seconds else.
_OPTIMISED = ("sha2", "ring", "curve25519-dalek")
_WORKSPACE = """[workspace]
members = ["wasmkiln", "programs"]
resolver = "2"
"""
_PROGRAMS = """[package]
name = "programs"
version = "0.0.0"
edition = "2021"
[dependencies]
tokio = {{ version = "1.43", features = ["macros", "rt-multi-thread"] }}
wasmkiln = {{ path = "../wasmkiln", features = ["blocking"] }}
wasmtime = "50"
[[bin]]
name = "asks"
path = "{here}/asks.rs"
[[bin]]
name = "page"
"""
PAGE = ROOT / "docs" / "how-to" / "hosts.md"


@dataclass(frozen=True)
class Rust:
    """Cargo, and a copy of the client, which it writes nothing beside."""

    folder: Path

    def __post_init__(self) -> None:
        """Write what cargo needs."""
        optimised = "\n".join(f"{name}.opt-level = 3" for name in _OPTIMISED)
        registry = crates()
        text = _CONFIGURATION.format(crates=registry, library=library(), optimised=optimised)
        add_wasmtime(registry / "wasmtime")
        shutil.rmtree(self.workspace, ignore_errors=True)
        page = self.workspace / "programs" / "src" / "bin" / "page.rs"
        for path in (self.home, page.parent):
            path.mkdir(parents=True, exist_ok=True)
        page.write_text(PAGE.read_text().partition("```rust\n")[2].partition("```")[0])
        (self.home / "config.toml").write_text(text)
        # The times of its files stay, so that nothing is built twice.
        unwanted = shutil.ignore_patterns("target", "Cargo.lock")
        shutil.copytree(CLIENT, self.workspace / "wasmkiln", ignore=unwanted)
        (self.workspace / "Cargo.toml").write_text(_WORKSPACE)
        (self.workspace / "programs" / "Cargo.toml").write_text(_PROGRAMS.format(here=HERE))

    @property
    def home(self) -> Path:
        """What cargo has of its own."""
        return self.folder / "home"

    @property
    def workspace(self) -> Path:
        """Where it builds."""
        return self.folder / "workspace"

    @property
    def environ(self) -> Mapping[str, str]:
        """What makes it build with Debian's crates and without the network."""
        # rustup looks below HOME, which may be another's; a second toolchain is never fetched.
        rustup = os.environ.get("RUSTUP_HOME", f"{pwd.getpwuid(os.geteuid()).pw_dir}/.rustup")
        return {
            "CARGO_HOME": str(self.home),
            "CARGO_TARGET_DIR": str(self.folder / "target"),
            "CARGO_TERM_COLOR": "never",
            "RUSTUP_HOME": rustup,
            "RUSTUP_AUTO_INSTALL": "0",
        }

    def __call__(self, *words: str | Path, environ: Mapping[str, str] | None = None) -> str:
        """Run cargo in the workspace. Return what it printed."""
        done = subprocess.run(
            ["cargo", *words],
            cwd=self.workspace,
            env={**os.environ, **self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def build(self, name: str) -> Path:
        """Build a program. Return its path."""
        self("build", "--quiet", "--bin", name)
        return self.folder / "target" / "debug" / name

    def run(
        self, cwd: Path, *words: str | Path, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, named as `cargo run` wants it, in a folder."""
        cargo: list[str | Path] = ["cargo", "run", "--quiet"]
        cargo += ["--manifest-path", self.workspace / "Cargo.toml", *words]
        return run(cargo, {**self.environ, **(environ or {})}, cwd=cwd, timeout_s=600)


def add_wasmtime(to: Path) -> None:
    """Add our crate `wasmtime` to a registry, under a version that tells its states apart."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(HERE / "wasmtime", to)
    files = sorted(each for each in to.rglob("*") if each.is_file())
    state = hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:16]
    manifest = to / "Cargo.toml"
    manifest.write_text(re.sub(r'(version = "50[\d.]+)', rf"\1+{state}", manifest.read_text()))
    (to / ".cargo-checksum.json").write_text('{"files": {}}')


def library() -> Path:
    """Return the folder of wasmtime's C library, in the package of the newest engine."""
    [engine] = [each for each in installed_engines() if each.id == FULL_ENGINE]
    [found] = engine.path.resolve().glob("lib/python*/site-packages/wasmtime/*/_libwasmtime.so")
    return found.parent
