"""The daemons that clients of other languages call, and how their programs are run."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.authority import Authority
from tests.e2e import wasm
from tests.e2e.bearers import token_command
from tests.e2e.callers import Caller, held_worker, modules
from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually
from tests.e2e.programs import ENGINE_SPECS, wasmkilnd

ENGINES = tuple(spec.replace("==", "-") for spec in ENGINE_SPECS)
FULL_ENGINE = "wasmtime-50.0.1"
"""The engine whose queue `full_queue` fills."""
QUEUE_LENGTH = 4
MAX_MODULE_BYTES = 24 * 1024 * 1024
TEXT = """(module
  (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add)
  (func $fib (export "fib") (param i32) (result i32)
    (if (result i32) (i32.lt_s (local.get 0) (i32.const 2))
      (then (local.get 0))
      (else (i32.add
        (call $fib (i32.sub (local.get 0) (i32.const 1)))
        (call $fib (i32.sub (local.get 0) (i32.const 2)))))))
  (global i32 (i32.const %d)))
"""
INVALID = '(module (func (export "add") (result i32) i64.const 1))'
_tags = itertools.count(1)


@dataclass(frozen=True)
class Kiln:
    """A daemon with a signing key, a host store and a queue that can be filled."""

    daemon: Daemon
    folder: Path
    """Where a test may write what it likes."""
    key_file: Path
    """The public key that signs, as PEM."""
    wrong_key_file: Path
    """A public key that signed nothing, as PEM."""
    module: Path
    """A module that exports `add(i32, i32)` and `fib(i32)`: `fib(20)` is 6765."""
    invalid_module: Path
    """A module that no engine accepts: MODULE_INVALID."""

    @property
    def address(self) -> str:
        """Where it serves gRPC."""
        return self.daemon.address

    @property
    def socket(self) -> str:
        """Where it serves gRPC by a Unix socket."""
        return f"unix:{self.folder}/kiln.sock"

    def fresh_module(self) -> Path:
        """Return a module as `module` is, that the daemon has never seen."""
        tag = next(_tags)
        path = self.folder / f"fresh-{tag}.wasm"
        path.write_bytes(wasm.from_text(TEXT % tag))
        return path

    def run(
        self,
        argv: Sequence[str | Path],
        environ: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program; a WASMKILN_* variable of this process does not reach it."""
        return run(argv, environ, cwd=cwd or self.folder)

    @contextlib.contextmanager
    def full_queue(self) -> Iterator[str]:
        """Keep the queue full until the end of the context. Return the engine's id.

        A call of a module that this engine has not compiled ends with COMPILE_QUEUE_FULL.
        """
        with contextlib.ExitStack() as stack:
            # One call of each connection, so that none of them has to make room for another.
            callers = [stack.enter_context(Caller(self.daemon)) for _ in range(QUEUE_LENGTH)]
            with held_worker(self.daemon):
                calls = [
                    caller.compile(module)
                    for caller, module in zip(callers, modules(QUEUE_LENGTH), strict=True)
                ]
                eventually(lambda: self._queued() == QUEUE_LENGTH, "the queue does not fill")
                try:
                    yield FULL_ENGINE
                finally:
                    for call in calls:
                        call.cancel()
            eventually(lambda: self._queued() == 0, "the queue does not empty")

    def _queued(self) -> int:
        return int(self.daemon.metric("queue_depth", engine=FULL_ENGINE))


@dataclass(frozen=True)
class Secure:
    """A daemon that speaks TLS and asks for a token."""

    daemon: Daemon
    address: str
    """Where it serves, by a name that its certificate has."""
    ca_file: Path
    token: str
    token_file: Path
    key_file: Path
    other_ca_file: Path
    """A CA that did not sign its certificate."""


def run(
    argv: Sequence[str | Path],
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a program without the WASMKILN_* variables of this process."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
    return subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env={**inherited, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextlib.contextmanager
def running_kiln(state: Path, folder: Path) -> Iterator[Kiln]:
    """Run the daemon of `Kiln`."""
    folder.mkdir()
    files = {"module": wasm.from_text(TEXT % 0), "invalid": wasm.from_text(INVALID)}
    for name, content in files.items():
        (folder / f"{name}.wasm").write_bytes(content)
    wrong = folder / "wrong.pem"
    wasmkilnd("keys", "generate", "--state-dir", str(folder / "stranger"))
    wrong.write_text(wasmkilnd("keys", "show", "--pem", "--state-dir", str(folder / "stranger")))
    flags = ["--workers", "1", "--queue-length", str(QUEUE_LENGTH), "--redis-url", "none"]
    flags += ["--max-module-bytes", str(MAX_MODULE_BYTES)]
    flags += ["--listen", "127.0.0.1:0", "--listen", f"unix:{folder}/kiln.sock"]
    with Daemon(state, [*flags, "--compile-timeout-s", "120"]) as daemon:
        key = folder / "key.pem"
        key.write_text(wasmkilnd("keys", "show", "--pem", "--state-dir", str(state)))
        module, invalid = folder / "module.wasm", folder / "invalid.wasm"
        yield Kiln(daemon, folder, key, wrong, module, invalid)


@contextlib.contextmanager
def running_secure(state: Path, folder: Path) -> Iterator[Secure]:
    """Run the daemon of `Secure`."""
    authority, other = Authority(folder), Authority(folder / "other")
    server = authority.server()
    token = token_command(state, "add", "ci", "--role", "compile", "--role", "metrics")
    token_file = folder / "ci.token"
    token_file.touch(0o600)
    token_file.write_text(token)
    flags = ["--tls-cert-file", str(server.cert_file), "--tls-key-file", str(server.key_file)]
    # Debian's gRPC for Java speaks no TLS 1.3.
    flags += ["--tls-min-version", "1.2", "--redis-url", "none", "--workers", "1"]
    with Daemon(state, flags) as daemon:
        key = folder / "key.pem"
        key.write_text(wasmkilnd("keys", "show", "--pem", "--state-dir", str(state)))
        address = f"localhost:{daemon.address.rpartition(':')[2]}"
        yield Secure(daemon, address, authority.ca_file, token, token_file, key, other.ca_file)
