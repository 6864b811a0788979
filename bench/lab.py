"""What is measured: daemons with state of their own, engines, modules, and servers beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from wasmkiln import Client
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2
from wasmkilnd.engines.install import EngineInstallError, EngineStore, InstalledEngine
from wasmkilnd.settings import default_state_dir

from tests.corpus.fetch import CorpusMismatch, CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME, RealModule
from tests.e2e.wasm import from_text, many_functions
from tests.servers.redis_server import binary_of, redis_server

ROOT = Path(__file__).resolve().parents[1]
ENGINE_NAMES = ("wasmer", "wasmtime")
COMPILE = "/wasmkiln.v1.ModuleService/Compile"
OPTIONS = (("grpc.max_send_message_length", -1),)
"""Of channels whose calls may send a module."""

_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 40.0
_REST_TIMEOUT_S = 60.0
_POLL_S = 0.01
_ESBUILD = RealModule(
    name="esbuild",
    requirement="esbuild-wasm@0.28.2",
    member="esbuild.wasm",
    sha256="b1831a5c0f6cf688034fb94d0419812f165ea316a3380d3fc00a151e562d2eaf",
    size_bytes=13_978_850,
)


PORTABLE = "pulley64"
RUNNING = """(module
  (func $fib (export "fib") (param $n i32) (result i32)
    (if (result i32) (i32.lt_u (local.get $n) (i32.const 2))
      (then (local.get $n))
      (else (i32.add (call $fib (i32.sub (local.get $n) (i32.const 1)))
                     (call $fib (i32.sub (local.get $n) (i32.const 2))))))))"""


class BenchError(Exception):
    """It cannot be measured; the message is one sentence for the person at the terminal."""


@dataclass(frozen=True)
class Module:
    """A module in a file."""

    name: str
    path: Path
    sha256: str
    wasm: bytes


@dataclass(frozen=True)
class Target:
    """An engine, and what the daemon compiles for when a request does not say."""

    engine: InstalledEngine
    triple: str
    cpu: str

    @property
    def id(self) -> str:
        """What a request writes to choose the engine."""
        return self.engine.id

    @property
    def packages(self) -> Path:
        """Where its Python finds the engine."""
        return next(self.engine.path.glob("lib/python*/site-packages"))


@dataclass(frozen=True)
class Setting:
    """One daemon with default settings, its engines, the modules, and how long to measure."""

    daemon: Daemon
    targets: Mapping[str, Target]
    folder: Path
    quick: bool
    """Whether to show only that all can be measured."""
    small: Module
    """An artifact of some 20 KB in wasmtime, of which most is the empty module's."""
    medium: Module
    """1.0 MB of C++; 2.6 MB in wasmtime. Both engines take about half a second."""
    large: Module
    """1.5 MB of C: an interpreter with one very large function, which no engine can split."""

    def rounds(self, usual: int) -> int:
        """Return how often to do what is usually done so often."""
        return 1 if self.quick else usual

    @property
    def mapped(self) -> Sequence[Module]:
        """Modules whose artifacts hosts map: 2.5 MB of Rust, and 14 MB of Go."""
        return (
            [self.medium] if self.quick else [_real(each) for each in (BY_NAME["resvg"], _ESBUILD)]
        )

    @property
    def wasmtime(self) -> Target:
        """The engine of measurements that need only one."""
        return self.targets["wasmtime"]

    def running(self) -> Module:
        """Make a module whose function computes for a while."""
        file = self.folder / "running.wasm"
        file.write_bytes(from_text(RUNNING))
        return _module("running", file)

    def state(self, name: str) -> Path:
        """Make a state directory with wasmtime, and nothing else."""
        return make_state(self.folder / name, [self.wasmtime.engine])


@contextmanager
def setting(quick: bool) -> Iterator[Setting]:
    """Start all that is measured, and end it afterwards. Raises BenchError."""
    engines = _engines_or_install()
    with tempfile.TemporaryDirectory(prefix="wasmkiln-bench-") as name:
        folder = Path(name)
        modules = [_made(folder, "small", 20)]
        modules += (
            [_made(folder, "medium", 300), _made(folder, "large", 400)]
            if quick
            else [_real(BY_NAME["itk-compress-stringify-2"]), _real(BY_NAME["quickjs-wasi"])]
        )
        with Daemon(make_state(folder / "state", engines.values())) as daemon:
            with daemon.client() as client:
                served = {each.engine.name: each for each in client.capabilities().engines}
            targets = {}
            for name, engine in engines.items():
                if name not in served:
                    raise BenchError(f"the daemon does not serve {name}: see {daemon.log}")
                host = next(target for target in served[name].targets if target.host)
                targets[name] = Target(engine, host.triple, host.cpus[0])
            yield Setting(daemon, targets, folder, quick, *modules)


def user_state_dir() -> Path:
    """Return the state directory of the user's own daemon, which `make run` fills."""
    named = os.environ.get("WASMKILN_STATE_DIR")
    return Path(named) if named else default_state_dir(os.environ)


def engines_in(state_dir: Path) -> dict[str, InstalledEngine]:
    """Return the newest installed version of each engine by name."""
    newest: dict[str, InstalledEngine] = {}
    for engine in EngineStore(state_dir).installed():
        newest.setdefault(engine.name, engine)
    return {name: newest[name] for name in ENGINE_NAMES if name in newest}


def _engines_or_install() -> dict[str, InstalledEngine]:
    """Return both engines: the user's, else those that tests use. Raises BenchError."""
    for_tests = Path(os.environ.get("WASMKILN_TEST_STATE", ROOT / ".work" / "state"))
    for state_dir in (user_state_dir(), for_tests):
        if len(engines := engines_in(state_dir)) == len(ENGINE_NAMES):
            return engines
    try:
        return {name: EngineStore(for_tests).install(name) for name in ENGINE_NAMES}
    except EngineInstallError as failure:
        raise BenchError(str(failure)) from None


def make_state(path: Path, engines: Iterable[InstalledEngine]) -> Path:
    """Make a state directory with these engines, by link, and nothing else."""
    folder = path / "engines"
    folder.mkdir(parents=True)
    for engine in engines:
        (folder / engine.id).symlink_to(engine.path.resolve())
    return path


def _made(folder: Path, name: str, functions: int) -> Module:
    file = folder / f"{name}.wasm"
    file.write_bytes(many_functions(functions))
    return _module(name, file)


def _real(module: RealModule) -> Module:
    try:
        return _module(module.name, fetch(module))
    except (CorpusUnavailable, CorpusMismatch) as failure:
        raise BenchError(str(failure)) from None


def _module(name: str, path: Path) -> Module:
    wasm = path.read_bytes()
    return Module(name, path, hashlib.sha256(wasm).hexdigest(), wasm)


class Daemon:
    """One ``wasmkilnd serve`` with default settings on a free port, ready once this is made.

    Its log goes to a file: to read it in the process that measures would disturb that.
    """

    def __init__(
        self, state_dir: Path, *flags: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.log = state_dir / "daemon.log"
        # Without settings of the user's own daemon: defaults are measured.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
        environment |= environ or {}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "wasmkilnd", "serve", "--state-dir", str(state_dir)),
                    *("--listen", "127.0.0.1:0", "--admin-listen", "none", "--log-format", "json"),
                    *flags,
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.pid = self._process.pid
        self.addresses = self._await_ready()
        self.address = self.addresses[0]

    def _await_ready(self) -> list[str]:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self.log.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if said["event"] == "ready":
                        return [str(address) for address in said["addresses"]]
            time.sleep(_POLL_S)
        self.stop()
        said = self.log.read_text(errors="replace").strip().splitlines()
        raise BenchError(f"the daemon did not start: {said[-1] if said else 'no message'}")

    def client(self, timeout_s: float = 120.0) -> Client:
        """Return a new client; the caller closes it."""
        return Client(self.address, timeout_s=timeout_s)

    def stop(self) -> None:
        """End it, as an operator would."""
        end(self._process)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def come_to_rest(client: Client) -> None:
    """Wait until the daemon compiles nothing, and the tiers have all: no reply waits for that."""
    until = time.monotonic() + _REST_TIMEOUT_S
    while (
        (stats := client.stats()).busy_workers
        or stats.flights
        or stats.pending_writes
        or stats.pending_object_writes
    ):
        if time.monotonic() > until:
            raise BenchError("the daemon did not come to rest")
        time.sleep(_POLL_S)


def start_redis(stack: ExitStack, folder: Path) -> str:
    """Start an empty Valkey in ``folder`` and return its URL; ``stack`` ends it."""
    return stack.enter_context(redis_server(binary_of("valkey"), folder)).url


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that this one started, and wait until it has."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


class Program:
    """A program that prints a line of JSON when it is ready, and then one for each order."""

    def __init__(self, stack: ExitStack, *command: Any, packages: Path | None = None) -> None:
        """Start it, with ``packages`` beside those of its Python; ``stack`` ends it."""
        path = [os.environ.get("PYTHONPATH"), str(ROOT), str(packages or "")]
        self._name = " ".join(map(str, command[1:4]))
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(end, self._process)
        self.pid = self._process.pid
        self.said: Any = self._answer()

    def ask(self, **order: object) -> float:
        """Give an order, and return the figure that answers it. Raises BenchError."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        try:
            return json.loads(line)
        except ValueError:
            raise BenchError(f"{self._name} printed no answer: {line.strip()}") from None


def program(stack: ExitStack, name: str, *arguments: str, packages: Path | None = None) -> Program:
    """Start a program of the bench in this Python."""
    return Program(stack, sys.executable, "-m", f"bench.{name}", *arguments, packages=packages)


class EngineProcess(Program):
    """Compiles without any daemon, in the engine's own interpreter, at ordinary priority."""

    def __init__(self, stack: ExitStack, target: Target) -> None:
        self._target = {"target": target.triple, "cpu": target.cpu}
        engine, inside = target.engine, Path(__file__).with_name("inside.py")
        child = ROOT / "server" / "wasmkilnd" / "engines"
        super().__init__(stack, engine.interpreter, "-I", "-B", inside, engine.name, child)

    def seconds(self, module: Module) -> float:
        """Return how long a compile takes in a process that has compiled nothing."""
        return self.ask(wasm=str(module.path), **self._target)


class RawStream:
    """One server-streaming method on a connection of its own; messages stay bytes."""

    def __init__(
        self,
        stack: ExitStack,
        address: str,
        method: str = COMPILE,
        trusted: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Connect, over TLS with ``trusted``; send ``metadata`` with each call."""
        secure = partial(grpc.secure_channel, credentials=trusted)
        channel: Any = (secure if trusted else grpc.insecure_channel)(address, options=OPTIONS)
        stack.callback(channel.close)
        self._call = partial(channel.unary_stream(method), metadata=metadata)

    def drain(self, request: bytes = b"") -> None:
        """Call, and take every message."""
        for _ in self._call(request):
            pass

    def whole(self, request: bytes) -> None:
        """Call, and do what no client can leave out: join the messages, and hash them."""
        hashlib.sha256(b"".join(self._call(request))).digest()

    def timed(self, request: bytes, origin: int, encoding: str = "", fast: bool = False) -> float:
        """Call; return the seconds. Raises BenchError if the answer came from somewhere else."""
        began = time.perf_counter()
        messages = list(self._call(request))
        seconds = time.perf_counter() - began
        header = header_of(messages[0])
        if (header.origin, header.content_encoding, header.is_fast) != (origin, encoding, fast):
            raise BenchError(
                f"a call was answered by origin {header.origin}, encoded"
                f" {header.content_encoding or 'not'}, fast code: {header.is_fast}"
            )
        return seconds


def request(engine: str, module: Module, *, upload: bool = False, **more: Any) -> bytes:
    """Return the serialized request by digest, or with the bytes; ``more`` as in the contract."""
    source: Any = {"module": module.wasm} if upload else {"sha256": module.sha256}
    return bytes(pb.CompileRequest(engine=engine, **source, **more).SerializeToString())


def header_of(message: bytes) -> types_pb2.ArtifactHeader:
    """Return the header of a raw answer, whose first message this is."""
    header: types_pb2.ArtifactHeader = pb.CompileResponse.FromString(message).header
    return header


def describe_machine() -> str:
    """Return CPU, system and versions in one line: without them, a figure says little."""
    with Path("/proc/cpuinfo").open() as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{len(os.sched_getaffinity(0))} CPUs ({names[0] if names else platform.machine()}),"
        f" {platform.freedesktop_os_release()['PRETTY_NAME']}, CPython"
        f" {platform.python_version()}, grpcio {grpc.__version__}, load {os.getloadavg()[0]:.1f}"
    )


def size_of(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e3:.0f} KB" if count < 10**6 else f"{count / 1e6:.1f} MB"
