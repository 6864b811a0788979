"""What access costs a memory hit: daemons that ask who calls, beside one that does not."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from wasmkiln.v1.types_pb2 import ORIGIN_MEMORY
from wasmkilnd.access.guard import Access, AccessGuard
from wasmkilnd.access.policy import Policy, Rule
from wasmkilnd.model import PLAINTEXT, Credentials, Role

from bench.hits import INLINE_BYTES
from bench.lab import BenchError, Daemon, make_state
from bench.modules import Module
from bench.raw import COMPILE, RawStream, by_bytes, by_digest, header_of
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import Action, collect, in_turns
from tests.servers.certificates import Certificates, certificates

POLICY_GOAL = 1.02
"""Of the policy alone: neither TLS nor a token."""
GUARD_GOAL = 0.02
"""Of looking up who calls, to the CPU time of the hit: the same goal, without the noise."""

_NONE = "neither"
_POLICY = "the policy alone"
_TOKEN = "a token"
_BOTH = "TLS and a token"
_AGAIN = "neither, in another daemon: the noise"
_KINDS = (_NONE, _POLICY, _TOKEN, _BOTH, _AGAIN)
_CPU = " in CPU time"
_CALLS = 20
"""Of which the CPU time is measured at once."""
_GUARD_CALLS = 1000
_GUARD_SERIES = 30
_SITTINGS = 3
_WARM_UP = 50
_EVERYBODY = '[[rule]]\nidentity = "anonymous"\nroles = ["compile"]\n'


@dataclass(frozen=True)
class _Site:
    """A daemon, and what a caller needs to get in."""

    daemon: Daemon
    token: str = ""
    ca_file: Path | None = None

    def stream(self, stack: ExitStack) -> RawStream:
        """Return a new connection that says who calls."""
        trusted = self.ca_file and grpc.ssl_channel_credentials(self.ca_file.read_bytes())
        metadata = [("authorization", f"Bearer {self.token}")] if self.token else []
        stream = RawStream(self.daemon.address, COMPILE, trusted, metadata)
        stack.callback(stream.close)
        return stream


def access(given: Setting) -> Iterator[Row]:
    """Memory hits of 20 KB and 2.6 MB, by turns in daemons that differ in nothing but access."""
    modules = (given.modules.small, given.modules.medium)
    sizes = [0] * len(modules)
    series: list[dict[str, list[float]]] = [{} for _ in modules]
    # Two daemons of one kind differ by some percent too, so there are several of each.
    for sitting in range(given.rounds(_SITTINGS)):
        with ExitStack() as stack:
            sites = _sites(given, given.folder / f"access-{sitting}", stack)
            for index, module in enumerate(modules):
                sizes[index], measured = _measured(given, sites, module)
                for kind, figures in measured.items():
                    series[index].setdefault(kind, []).extend(figures)
    for size, found in zip(sizes, series, strict=True):
        what = f"{size / 1e3:.0f} KB" if size < 10**6 else f"{size / 1e6:.1f} MB"
        alone = [_guard_s() for _ in range(_GUARD_SERIES)]
        whole = found[_NONE + _CPU]
        title = f"{what} artifact, a memory hit: the guard alone, by a policy"
        yield compare("access", title, alone, "CPU time of the whole hit", whole, GUARD_GOAL)
        for group, cpu in (("memory hit", ""), ("CPU time of the daemon for a memory hit", _CPU)):
            for kind in _KINDS[1:]:
                goal = POLICY_GOAL if kind == _POLICY else None
                ours, neither = found[kind + cpu], found[_NONE + cpu]
                yield compare(group, f"{what} artifact, {kind}", ours, _NONE, neither, goal)


def _sites(given: Setting, folder: Path, stack: ExitStack) -> Mapping[str, _Site]:
    folder.mkdir()
    policy = folder / "policy.toml"
    policy.write_text(_EVERYBODY)
    tls = certificates(folder / "tls")

    def start(kind: str) -> _Site:
        state = make_state(folder / str(_KINDS.index(kind)), {"wasmtime": given.wasmtime.engine})
        token = _token(state) if kind in (_TOKEN, _BOTH) else ""
        flags = {_POLICY: ["--policy-file", str(policy)], _BOTH: _tls_flags(tls)}.get(kind, [])
        daemon = stack.enter_context(Daemon(state, "--redis-url", "none", *flags))
        return _Site(daemon, token, tls.ca_file if kind == _BOTH else None)

    # In a new order each time: what starts first is not always the same.
    return {kind: start(kind) for kind in random.sample(_KINDS, len(_KINDS))}


def _guard_s() -> float:
    """Return how long the guard takes for a call that it has seen before."""
    everybody = Rule(
        identity=("anonymous",),
        roles=(
            Role.COMPILE,
            Role.READ,
        ),
    )
    guard = AccessGuard(Access(Policy((everybody,)), on=True))
    started = time.perf_counter()
    for _ in range(_GUARD_CALLS):
        guard.admit(COMPILE, PLAINTEXT, Credentials)
    return (time.perf_counter() - started) / _GUARD_CALLS


def _tls_flags(tls: Certificates) -> Sequence[str]:
    tls.key_file.chmod(0o600)
    return ["--tls-cert-file", str(tls.cert_file), "--tls-key-file", str(tls.key_file)]


def _token(state: Path) -> str:
    command = [sys.executable, "-m", "wasmkilnd", "token", "add", "bench", "--role", "compile"]
    done = subprocess.run(
        [*command, "--state-dir", str(state)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(done.stderr.strip())
    return done.stdout.strip()


def _measured(
    given: Setting, sites: Mapping[str, _Site], module: Module
) -> tuple[int, dict[str, list[float]]]:
    """Return the artifact's size, and how long hits took by kind of access."""
    engine_id = given.wasmtime.engine.id
    request = by_digest(module.sha256, engine_id, inline_limit_bytes=INLINE_BYTES)
    with ExitStack() as stack:
        streams = {kind: site.stream(stack) for kind, site in sites.items()}
        for kind, stream in streams.items():
            stream.drain(by_bytes(module.wasm, engine_id))
            header = header_of(stream.messages(request))
            if header.origin != ORIGIN_MEMORY:
                raise BenchError(f"the daemon with {kind} did not answer from memory")
        actions = {kind: partial(stream.drain, request) for kind, stream in streams.items()}
        rounds = given.rounds(300 if header.size_bytes < 10**6 else 150)
        measured = in_turns(actions, rounds, given.rounds(_WARM_UP))
        # Where others use the CPUs too, this says more than the time that passes.
        used = {
            kind + _CPU: partial(_cpu_s, sites[kind].daemon.pid, action)
            for kind, action in actions.items()
        }
        return header.size_bytes, measured | collect(used, given.rounds(30))


def _cpu_s(pid: int, action: Action) -> float:
    """Return how much CPU time a process uses for one of several actions."""
    before = _used_ns(pid)
    for _ in range(_CALLS):
        action()
    return (_used_ns(pid) - before) / 1e9 / _CALLS


def _used_ns(pid: int) -> int:
    """Return the CPU time of a process, of threads that have ended too."""
    # The clock of another process, as clock_getcpuclockid(3) names it, which Python does not have.
    return time.clock_gettime_ns(~pid << 3 | 2)
