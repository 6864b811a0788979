"""`client.module` and `client.host_file`: what serves a call, and what it falls back to."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import wasmkiln
import wasmtime
from wasmkiln import AsyncClient, Client, errors, loading
from wasmkiln._source import identify
from wasmkiln.loading import Loaded, LoadedModules
from wasmkiln.v1 import types_pb2 as types

from tests.e2e import wasm
from tests.host_store_writer import ROW, StoreWriter
from tests.unit.client.fake_daemon import FakeDaemon, Refusal

NOBODY = "127.0.0.1:1"
ADDER = wasm.adder(7)
OTHER = wasm.adder(8)
DIGEST = hashlib.sha256(ADDER).hexdigest()
DRAINING = Refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")


def code(**settings: str) -> bytes:
    engine = loading._engine_for("wasmtime", settings)
    return bytes(wasmtime.Module(engine, ADDER).serialize())


def add(module: Any) -> int:
    """Run a module of `wasm.adder`."""
    engine_store = wasmtime.Store(wasmkiln.engine_of(module))
    exported = wasmtime.Instance(engine_store, module, []).exports(engine_store)["add"]
    assert isinstance(exported, wasmtime.Func)
    return int(exported(engine_store, 40, 2))


@dataclass
class Host:
    """A host store, a daemon that has the code of ADDER, and clients of one kind."""

    make: Callable[..., Any]
    daemon: FakeDaemon
    store: StoreWriter

    def alone(self, **options: Any) -> Any:
        """Return a client that knows the host store, and no daemon."""
        given = {"host_store_dir": self.store.directory, "max_attempts": 1, **options}
        return self.make(NOBODY, **given)

    def asking(self, **options: Any) -> Any:
        """Return a client that knows the daemon, and no host store."""
        return self.make(self.daemon.address, **{"host_store_dir": "none", **options})

    def both(self, place: str = ".") -> Any:
        """Return a client that knows the daemon, and where it looks for a host store."""
        return self.make(self.daemon.address, host_store_dir=self.store.directory / place)

    def name_file(self) -> Path:
        """Have the daemon name the file of an entry, where a call accepts that."""
        path = self.store.add(ADDER)
        status = path.stat()
        self.daemon.host_file = types.HostFile(
            path=str(path), device=status.st_dev, inode=status.st_ino
        )
        self.daemon.header_changes = {"fingerprint": path.parents[2].name}
        return path

    def asked_for_files(self) -> list[bool]:
        return [each.accept_host_file for each in self.daemon.requests("Compile")]


@pytest.fixture
def stocked(daemon: FakeDaemon) -> FakeDaemon:
    """The daemon, with the code of ADDER."""
    daemon.modules[DIGEST] = ADDER
    daemon.artifact = code()
    return daemon


@pytest.fixture
def host(make_client: Callable[..., Any], stocked: FakeDaemon, tmp_path: Path) -> Host:
    return Host(make_client, stocked, StoreWriter(tmp_path / "store"))


# --- the host store -------------------------------------------------------------------------


def test_a_dead_daemon_is_not_missed_and_a_module_is_loaded_once(
    host: Host, tmp_path: Path
) -> None:
    host.store.add(ADDER)
    host.store.add(ADDER, {"consume_fuel": "true"})
    client = host.alone()
    file = tmp_path / "adder.wasm"
    file.write_bytes(ADDER)
    first = client.module(ADDER)
    assert add(first) == 42
    for source in (ADDER, DIGEST, file, str(file)):
        assert client.module(source, engine="wasmtime") is first
    engine = wasmtime.Engine()
    other = client.module(ADDER, into=engine)
    assert other is not first
    assert wasmkiln.engine_of(other) is engine
    assert client.module(ADDER, into=engine, kind=wasmtime.Module) is other
    for _ in ("loaded now", "loaded before"):
        with pytest.raises(TypeError, match="expected a Func, and the module is a Module"):
            client.module(ADDER, into=wasmtime.Engine(), kind=wasmtime.Func)
    fueled = client.module(ADDER, settings={"consume_fuel": "true"})
    engine_store = wasmtime.Store(wasmkiln.engine_of(fueled))
    engine_store.set_fuel(1000)
    assert wasmtime.Instance(engine_store, fueled, [])


def test_a_file_that_changed_is_another_module(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkiln._source.is_racy", lambda _: False)
    client = host.alone()
    file = tmp_path / "adder.wasm"
    for module in (ADDER, OTHER):
        host.store.add(module)
        file.write_bytes(module)
        assert len(module) == len(ADDER)
        os.utime(file, ns=(1, 1))
        assert client.module(file) is client.module(file) is client.module(module)


def test_a_file_that_changes_meanwhile_is_told(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.wasm"
    file.write_bytes(OTHER)

    def then_changed(source: Any) -> Any:
        identified = identify(source)
        file.write_bytes(ADDER)
        return identified

    monkeypatch.setattr("wasmkiln.client.identify", then_changed)
    client = host.asking()
    with pytest.raises(OSError, match="changed during a call: ask again"):
        client.module(file)
    assert client.module(file) is client.module(ADDER)


def test_of_several_versions_the_one_that_fits(host: Host) -> None:
    host.store.add(ADDER)
    newer = {**ROW, "id": "wasmtime-99.0.0", "version": "99.0.0", "core_version": "99.0.0"}
    host.store.rows.insert(0, newer)
    host.store.write_engines()
    client = host.both()
    assert add(client.module(ADDER, engine="wasmtime")) == 42
    host.daemon.refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID"))
    with pytest.raises(errors.ModuleInvalid):
        client.module(OTHER, engine="wasmtime")
    assert host.daemon.requests("Compile")[-1].engine == "wasmtime-50.0.1"
    # Where no daemon answers, a name stands for the version that is here.
    compiled = host.alone().module(OTHER, engine="wasmtime", fallback="compile")
    assert add(compiled) == 42


def test_a_namespace_has_files_of_its_own(host: Host) -> None:
    team = StoreWriter(host.store.directory / "ns" / "team-a")
    host.store.add(ADDER)
    team.add(OTHER)
    inside, outside = host.alone(namespace="team-a"), host.alone()
    assert add(inside.module(OTHER, engine="wasmtime")) == 42
    assert add(outside.module(ADDER, engine="wasmtime")) == 42
    strangers = ((inside, ADDER), (outside, OTHER), (host.alone(namespace="team-b"), ADDER))
    for client, module in strangers:
        with pytest.raises(errors.ConnectionFailed):
            client.module(module, engine="wasmtime")


# --- many calls at once ---------------------------------------------------------------------

CALLS = 8


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Is released by each call that waits for another one."""
    released = threading.Semaphore(0)

    def counted(real: Any) -> Any:
        async def wait(*options: Any) -> None:
            released.release()
            await real(*options)

        return wait

    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "_wait_for", counted(kind._wait_for))
    return released


async def at_once(
    daemon: FakeDaemon,
    waiting: threading.Semaphore,
    kind: type[Client | AsyncClient],
    first: Callable[[Any], Any] = id,
    **options: Any,
) -> list[Any]:
    """Ask for a module by many calls, and have the daemon answer once all wait for the first.

    The first has `options`; before the answer, do `first` with its task. Return what came of each.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * CALLS))
    client: Any = kind(daemon.address, host_store_dir="none", timeout_s=30)

    def ask(**options: Any) -> Any:
        if kind is AsyncClient:
            return asyncio.create_task(client.module(ADDER, **options))
        return asyncio.create_task(asyncio.to_thread(client.module, ADDER, **options))

    daemon.hang.clear()
    daemon.entered.clear()
    tasks = [ask(**options)]
    assert await asyncio.to_thread(daemon.entered.wait, 10)
    tasks += [ask() for _ in range(CALLS - 1)]
    for _ in tasks[1:]:
        assert await asyncio.to_thread(waiting.acquire, timeout=10)
    first(tasks[0])
    if options or tasks[0].cancelling():
        await asyncio.wait(tasks[:1])
    daemon.hang.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    if (closing := client.close()) is not None:
        await closing
    return found


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_calls_for_one_module_load_it_once(
    stocked: FakeDaemon, waiting: threading.Semaphore, kind: Any
) -> None:
    found = await at_once(stocked, waiting, kind)
    assert add(found[0]) == 42
    assert len(set(map(id, found))) == 1
    assert len(stocked.requests("Compile")) == 1


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_an_error_reaches_all_who_wait(
    stocked: FakeDaemon, waiting: threading.Semaphore, kind: Any
) -> None:
    stocked.refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID"))
    found = await at_once(stocked, waiting, kind)
    assert {type(each) for each in found} == {errors.ModuleInvalid}
    assert len(stocked.requests("Compile")) == 1


async def test_a_first_call_that_is_cancelled_fails_no_other(
    stocked: FakeDaemon, waiting: threading.Semaphore
) -> None:
    cancelled, *others = await at_once(stocked, waiting, AsyncClient, lambda task: task.cancel())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert add(others[0]) == 42
    assert len(set(map(id, others))) == 1
    assert len(stocked.requests("Compile")) == 2


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_first_call_that_has_less_time_fails_no_other(
    stocked: FakeDaemon, waiting: threading.Semaphore, kind: Any
) -> None:
    late, *others = await at_once(stocked, waiting, kind, timeout_s=2)
    assert isinstance(late, errors.DeadlineExceeded)
    assert add(others[0]) == 42
    assert len(set(map(id, others))) == 1
    assert len(stocked.requests("Compile")) == 2


# --- a file that the daemon names -----------------------------------------------------------


def test_the_daemon_names_a_file(host: Host) -> None:
    path = host.name_file()
    client = host.both("elsewhere")
    assert client.host_file(ADDER) == path
    assert add(client.module(ADDER)) == 42
    assert host.asked_for_files() == [True, True]
    assert add(host.asking().module(ADDER)) == 42
    assert host.asked_for_files()[2:] == [False], "without a host store, bytes only"


NO_STORE = "not one of a host store"


@pytest.mark.parametrize(
    ("wrong", "cause", "detail"),
    [
        ("mode", "refused", "users other than the owner can write to the file artifact"),
        ("gone", "refused", "No such file"),
        ("inode", "refused", "another file here than the daemon's"),
        ("none", "not_named", "named no file"),
        # A daemon may name any path.
        *(
            (path, "refused", NO_STORE)
            for path in (
                *("", "artifact", "/", "/etc/passwd", "relative/artifact", "/\0/artifact"),
                "/" + "a/" * 5000,
                "{store}/../store/{fingerprint}/{start}/{module}/artifact",
                "{store}/{fingerprint}/{start}/{other}/artifact",
                "{store}/./{fingerprint}/{start}/{module}/artifact.json",
            )
        ),
    ],
)
def test_a_file_that_cannot_be_opened_is_sent_as_bytes(
    host: Host, wrong: str, cause: str, detail: str
) -> None:
    path = host.name_file()
    assert host.daemon.host_file
    if wrong == "mode":
        path.chmod(0o666)
    elif wrong == "gone":
        path.unlink()
    elif wrong == "inode":
        host.daemon.host_file.inode += 1
    elif wrong == "none":
        host.daemon.host_file = None
    else:
        host.daemon.host_file.path = wrong.format(
            store=host.store.directory,
            fingerprint=path.parents[2].name,
            start=DIGEST[:2],
            module=DIGEST,
            other=host.store.add(OTHER).parent.name,
        )
    client = host.both("elsewhere")
    assert add(client.module(ADDER)) == 42
    if wrong != "none":
        assert host.asked_for_files() == [True, False]
        assert client.module(ADDER, into=wasmtime.Engine()) is not None
        assert host.asked_for_files()[2:] == [False], "it asks for no files for a while"
    sent_bytes = host.daemon.sent_bytes
    with pytest.raises(errors.HostFileUnavailable, match=detail) as caught:
        client.host_file(ADDER)
    assert host.daemon.sent_bytes == sent_bytes, "no file, and no bytes instead of one"
    assert caught.value.metadata["cause"] == cause
    assert detail in caught.value.metadata["detail"]


def test_a_client_without_a_host_store_has_no_files(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMKILN_HOST_STORE_DIR", "none")
    for client in (host.asking(), host.make(host.daemon.address)):
        with pytest.raises(errors.HostFileUnavailable, match="uses no host store") as caught:
            client.host_file(ADDER)
        assert caught.value.metadata == {"cause": "switched_off"}
    assert not host.daemon.calls


# --- compiling here -------------------------------------------------------------------------


def test_compiles_here_without_a_daemon(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    client = host.alone(host_store_dir="none", timeout_s=20)
    assert add(client.module(ADDER, fallback="compile")) == 42
    assert client.module(ADDER, fallback="compile", cpu="baseline")
    fueled = client.module(ADDER, fallback="compile", settings={"consume_fuel": "true"})
    wasmtime.Store(wasmkiln.engine_of(fueled)).set_fuel(1)
    here = importlib.metadata.version("wasmtime")
    assert add(client.module(ADDER, engine=f"wasmtime-{here}", fallback="compile")) == 42
    for module in (ADDER, "0" * 64):
        with pytest.raises(errors.ConnectionFailed):
            host.alone().module(module, fallback=None if module == ADDER else "compile")
    monkeypatch.setattr("wasmkiln.loading.compile_here", lambda *_: threading.Event().wait(30))
    with pytest.raises(errors.DeadlineExceeded, match="in this process"):
        client.module(OTHER, fallback="compile", timeout_s=1)


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        ({"source": b"(module)"}, errors.NotWasm, "neither a WebAssembly module"),
        ({"source": ADDER[:8] + b"\xff"}, errors.ModuleInvalid, "cannot compile the module here"),
        ({"target": "riscv64-unknown-linux-gnu"}, errors.IncompatibleEngine, "this machine is"),
        ({"cpu": "x86-64-v9"}, errors.IncompatibleEngine, "the cpu x86-64-v9: this client"),
        (
            {"settings": {"consume_fuelx": "true"}},
            errors.IncompatibleEngine,
            "engine with consume_fuelx=true",
        ),
        ({"engine": "wasmtime-12.0.0"}, errors.IncompatibleEngine, "is installed"),
        ({"engine": "setuptools-1"}, errors.EngineNotInstalled, "this client knows"),
    ],
)
def test_what_cannot_be_compiled_here(
    host: Host, asked: dict[str, Any], kind: type[Exception], says: str
) -> None:
    client = host.alone(host_store_dir="none")
    with pytest.raises(kind, match=says) as caught:
        client.module(**{"source": ADDER, "fallback": "compile", **asked})
    if kind is errors.IncompatibleEngine:
        assert isinstance(caught.value.__cause__, errors.ConnectionFailed)


REFUSED = [reason for reason, kind in errors.BY_REASON.items() if kind.CODE.name != "UNAVAILABLE"]


@pytest.mark.parametrize("reason", [each for each in REFUSED if each != "MODULE_NOT_LOADED"])
def test_whoever_is_refused_compiles_nothing_here(host: Host, reason: str) -> None:
    code = errors.BY_REASON[reason].CODE
    host.daemon.refuse(Refusal(code, reason, "not you", retry_after_s=0.0))
    client = host.asking()
    with pytest.raises(errors.WasmkilnError) as caught:
        client.module(ADDER, fallback="compile")
    assert caught.value.reason == reason
    assert len(host.daemon.calls) == 1
    host.daemon.header_changes = {"module_sha256": "ab" * 32}
    with pytest.raises(errors.ArtifactMismatch):
        client.module(ADDER, fallback="compile")


@pytest.mark.parametrize("reason", ["SERVER_DRAINING", "WORKER_UNAVAILABLE", "", "silence"])
def test_whoever_compiles_here_is_warned(
    host: Host, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    if reason == "silence":  # half of the time is left to compile
        host.daemon.hang.clear()
    else:
        host.daemon.refuse(Refusal(grpc.StatusCode.UNAVAILABLE, reason, "going away"))
    client = host.asking(timeout_s=10)
    with caplog.at_level(logging.WARNING, "wasmkiln"):
        assert add(client.module(ADDER, fallback="compile")) == 42
    [record] = caplog.records
    assert f"compiling module {DIGEST} here: " in record.message
    assert len(host.daemon.requests("Compile")) == 1, "one attempt"


# --- portable code --------------------------------------------------------------------------

NO_TARGET = Refusal(
    *(grpc.StatusCode.INVALID_ARGUMENT, "TARGET_UNSUPPORTED", "no such target"),
    {"target": "riscv64gc-unknown-linux-gnu", "targets": "x86_64-unknown-linux-gnu"},
)


def another_machine(patch: pytest.MonkeyPatch, host: Host) -> None:
    patch.setattr(loading, "ARCHITECTURE", "aarch64")


def a_lesser_cpu(patch: pytest.MonkeyPatch, host: Host) -> None:
    patch.setattr(loading, "cpu_features", lambda: frozenset({"sse2"}))
    host.daemon.header_changes = {"cpu": "x86-64-v3"}


def a_feature_that_only_the_engine_knows_of(patch: pytest.MonkeyPatch, host: Host) -> None:
    real = wasmtime.Module.deserialize

    def deserialize(engine: Any, code: Any) -> Any:
        if engine is loading._engine_for("wasmtime", {}):
            lacks = 'compilation setting "has_avx" is enabled, but not available on the host'
            raise wasmtime.WasmtimeError(lacks)
        return real(engine, code)

    patch.setattr(wasmtime.Module, "deserialize", deserialize)


def no_such_target(patch: pytest.MonkeyPatch, host: Host) -> None:
    host.daemon.refuse(NO_TARGET)


UNFIT = [another_machine, a_lesser_cpu, a_feature_that_only_the_engine_knows_of, no_such_target]


@pytest.mark.parametrize("unfit", UNFIT)
def test_portable_code_where_no_native_code_fits(
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unfit: Callable[[pytest.MonkeyPatch, Host], None],
) -> None:
    unfit(monkeypatch, host)
    host.daemon.artifact = code(target="pulley64")
    client = host.asking()
    with caplog.at_level(logging.WARNING, "wasmkiln"):
        module = client.module(ADDER, engine="wasmtime", fallback="portable")
    assert add(module) == 42
    [record] = caplog.records
    assert f"loading portable code of module {DIGEST}: " in record.message
    native, portable = host.daemon.requests("Compile")
    assert (native.target, portable.target, portable.cpu) == ("", "pulley64", "")
    assert client.module(ADDER, engine="wasmtime", fallback="portable") is module
    assert len(host.daemon.requests("Compile")) == 2


def test_portable_code_is_for_nothing_else(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    client = host.asking()
    with pytest.raises(ValueError, match="fallback='portable' the engine depends"):
        client.module(ADDER, fallback="portable", into=wasmtime.Engine())
    with monkeypatch.context() as other:
        other.setattr(loading, "installed", lambda _: "51.0.0")
        with pytest.raises(errors.IncompatibleEngine, match=r"51\.0"):
            client.module(ADDER, engine="wasmtime", fallback="portable")
    host.daemon.refuse(Refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING", "not you"))
    with pytest.raises(errors.RoleMissing):
        client.module(ADDER, engine="wasmtime", fallback="portable")
    monkeypatch.setattr(loading, "ARCHITECTURE", "aarch64")
    with pytest.raises(errors.IncompatibleEngine, match="this machine is aarch64"):
        client.module(ADDER, engine="wasmtime")
    assert {each.target for each in host.daemon.requests("Compile")} == {""}


def test_portable_code_stands_in_until_there_is_native_code(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"engine": "wasmtime", "fallback": "portable"}
    client, native = host.asking(), host.daemon.artifact
    with monkeypatch.context() as before:
        another_machine(before, host)
        host.daemon.artifact = code(target="pulley64")
        portable = client.module(ADDER, **asked)
        with pytest.raises(errors.IncompatibleEngine):
            client.module(ADDER, engine="wasmtime")
        monkeypatch.setattr("wasmkiln.loading.LOOK_FOR_NATIVE_S", 0)
        assert client.module(ADDER, **asked) is portable
        host.daemon.refuse(DRAINING)
        assert client.module(ADDER, **asked) is portable, "a failed look harms nothing"
    host.daemon.artifact = native
    better = client.module(ADDER, **asked)
    assert better is not portable
    assert add(better) == 42
    calls = len(host.daemon.calls)
    assert client.module(ADDER, **asked) is client.module(ADDER, engine="wasmtime") is better
    assert len(host.daemon.calls) == calls


def test_code_for_another_machine_is_not_downloaded(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon sends nothing behind its header until the client has ended the call."""

    def wait(messages: Any) -> Any:
        yield messages[0]
        assert host.daemon.cancelled.wait(20)

    another_machine(monkeypatch, host)
    host.daemon.artifact, host.daemon.tamper = bytes(10**6), wait
    with pytest.raises(errors.IncompatibleEngine, match="this machine is aarch64"):
        host.asking(timeout_s=10).module(ADDER, engine="wasmtime")
    assert host.daemon.sent_bytes == 0


def test_a_host_store_with_both_needs_no_daemon(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    portable = {**host.store.rows[0]["targets"][0], "triple": "pulley64", "host": False}
    host.store.rows[0]["targets"].append(portable)
    host.store.write_engines()
    host.store.add(ADDER)
    digest = host.store.engines().fingerprint(host.store.engines().rows[0], "pulley64", "", {})
    host.store.write(*(ADDER, code(target="pulley64"), {}), target="pulley64", fingerprint=digest)
    another_machine(monkeypatch, host)
    assert add(host.alone().module(ADDER, fallback="portable")) == 42
    compiled = host.alone().module(ADDER, fallback="compile")
    assert add(compiled) == 42


def test_machines_that_run_portable_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ARCHITECTURE", "loongarch64")
    loading.check_machine("pulley64", "baseline")
    for unfit in ("pulley32", "pulley64be"):
        with pytest.raises(errors.IncompatibleEngine):
            loading.check_machine(unfit, "baseline")
    for name, value in (("byteorder", "big"), ("maxsize", 2**31 - 1)):
        with monkeypatch.context() as other:
            other.setattr(sys, name, value)
            with pytest.raises(errors.IncompatibleEngine, match="pulley64"):
                loading.check_machine("pulley64", "baseline")


def test_the_engine_in_this_process_interprets_too(host: Host) -> None:
    client = host.alone(host_store_dir="none", timeout_s=20)
    module = client.module(ADDER, fallback="compile", target="pulley64")
    assert add(module) == 42
    assert b"pulley64" in module.serialize()


# --- engines --------------------------------------------------------------------------------


def test_into_another_engine_says_what_to_do(host: Host) -> None:
    client = host.asking()
    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    with pytest.raises(errors.IncompatibleEngine, match=r"or leave out `into`$"):
        client.module(ADDER, into=engine)
    artifact = client.compile(ADDER, engine="wasmtime")
    with pytest.raises(errors.IncompatibleEngine, match=r"artifact.engine\(\) is an engine that"):
        artifact.load(engine)


def test_threads_that_load_at_once_share_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_engines", {})
    real = wasmtime.Engine

    def slowly(config: Any) -> Any:
        time.sleep(0.05)
        return real(config)

    monkeypatch.setattr(wasmtime, "Engine", slowly)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: loading._engine_for("wasmtime", {}), range(4)))
    assert len(set(map(id, made))) == 1


def test_the_least_recently_used_is_forgotten() -> None:
    held = LoadedModules(limit=2)
    one, two, three = (Loaded(object(), is_fast=False) for _ in range(3))
    held.put(("a",), None, one)
    held.put(("b",), None, two)
    assert held.get(("a",), None) is one
    held.put(("c",), None, three)
    assert held.get(("b",), None) is None
    assert held.put(("a",), None, two) is one.module, "what came first stays"


def test_arguments(host: Host) -> None:
    with pytest.raises(ValueError, match="check_files"):
        host.make(NOBODY, check_files="never")
    client = host.alone()
    with pytest.raises(ValueError, match="fallback"):
        client.module(ADDER, fallback="interpret")
    with pytest.raises(TypeError, match="Engine"):
        client.module(ADDER, into=object())
    with pytest.raises(ValueError, match="engine_of"):
        client.module(ADDER, accept_fast=True, into=wasmtime.Engine())
    with pytest.raises(LookupError):
        wasmkiln.engine_of(object())


# --- fast code ------------------------------------------------------------------------------

WINCH = {"strategy": "winch"}


@pytest.fixture
def fast(host: Host) -> FakeDaemon:
    """A daemon that has fast code only, as yet."""
    host.daemon.fast_artifact = code(**WINCH)
    return host.daemon


def test_fast_code_is_replaced_once_the_daemon_has_better_code(
    host: Host, fast: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = host.asking()
    assert other.module(ADDER, accept_fast=True) is not other.module(ADDER)
    assert other.module(ADDER, accept_fast=True) is other.module(ADDER)
    fast.calls.clear()
    client = host.asking()
    first = client.module(ADDER, accept_fast=True)
    assert add(first) == 42
    for _ in range(5):
        assert client.module(ADDER, accept_fast=True) is first
    assert len(fast.requests("Compile")) == 1, "not more than one look a second"
    monkeypatch.setattr("wasmkiln.loading.LOOK_AGAIN_S", 0)
    assert client.module(ADDER, accept_fast=True) is first
    _, look = fast.requests("Compile")
    assert (look.omit_artifact, look.engine) == (True, "wasmtime")
    fast.fast_artifact = b""
    better = client.module(ADDER, accept_fast=True)
    assert better is not first
    assert add(better) == 42
    calls = len(fast.calls)
    assert client.module(ADDER, accept_fast=True) is better
    assert client.module(ADDER) is better
    assert len(fast.calls) == calls


def test_fast_code_is_replaced_from_the_host_store(
    host: Host, fast: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkiln.loading.LOOK_AGAIN_S", 0)
    client = host.both()
    first = client.module(ADDER, accept_fast=True)
    fast.refuse(DRAINING)
    assert client.module(ADDER, accept_fast=True) is first, "a failed look harms nothing"
    host.store.add(ADDER)
    calls = len(fast.calls)
    assert client.module(ADDER, accept_fast=True) is not first
    assert len(fast.calls) == calls


def write_fast_file(host: Host) -> None:
    """Write fast code into the host store; the daemon has optimised code from now on."""
    row = host.store.rows[0]
    row["settings"] = {**row["settings"], "strategy": "cranelift"}
    row["unhashed_defaults"] = ["strategy"]
    host.store.write_engines()
    fast, host.daemon.fast_artifact = host.daemon.fast_artifact, b""
    host.store.write(ADDER, fast, WINCH, is_fast=True)


@pytest.mark.usefixtures("fast")
def test_a_fast_file_serves_while_no_daemon_answers(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fast_file(host)
    for fallback in ("compile", None):
        client = host.alone()
        first = client.module(ADDER, accept_fast=True, fallback=fallback)
        assert add(first) == 42
        assert wasmkiln.engine_of(first) is loading._engine_for("wasmtime", WINCH)
    for asked in ({}, {"accept_fast": True, "settings": {"strategy": "cranelift"}}):
        with pytest.raises(errors.ConnectionFailed):
            client.module(ADDER, **asked)
    monkeypatch.setattr("wasmkiln.loading.LOOK_AGAIN_S", 0)
    assert client.module(ADDER, accept_fast=True) is first
    host.store.add(ADDER)
    assert client.module(ADDER, accept_fast=True) is client.module(ADDER)


def test_optimised_code_of_the_daemon_goes_before_a_fast_file(host: Host, fast: FakeDaemon) -> None:
    write_fast_file(host)
    client = host.both()
    best = client.module(ADDER, accept_fast=True)
    assert wasmkiln.engine_of(best) is loading._engine_for("wasmtime", {})
    look, request = fast.requests("Compile")
    assert (look.accept_fast, look.omit_artifact, request.omit_artifact) == (True, True, False)
    assert client.module(ADDER) is best
    fast.refuse(Refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"))
    assert add(host.both().module(ADDER, accept_fast=True)) == 42
