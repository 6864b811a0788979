"""`client.module`: what serves it, in order, and what it falls back to."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import wasmkiln
import wasmtime
from wasmkiln import errors, host_store, loading
from wasmkiln._requests import identify
from wasmkiln.loading import Loaded, LoadedModules
from wasmkiln.v1 import types_pb2 as types

from tests.e2e import wasm
from tests.host_store_writer import ROW, StoreWriter
from tests.unit.client.fake_daemon import FakeDaemon, Refusal

NOBODY = "127.0.0.1:1"


@pytest.fixture
def store(tmp_path: Path) -> StoreWriter:
    return StoreWriter(tmp_path / "store")


@pytest.fixture(scope="module")
def adder() -> bytes:
    return wasm.adder(7)


def add(module: Any) -> int:
    """Run a module of `wasm.adder`."""
    engine_store = wasmtime.Store(wasmkiln.engine_of(module))
    exported = wasmtime.Instance(engine_store, module, []).exports(engine_store)["add"]
    assert isinstance(exported, wasmtime.Func)
    return int(exported(engine_store, 40, 2))


@pytest.fixture
def code(adder: bytes) -> bytes:
    return bytes(wasmtime.Module(wasmtime.Engine(), adder).serialize())


def test_a_dead_daemon_is_not_missed(
    make_client: Callable[..., Any], store: StoreWriter, adder: bytes, tmp_path: Path
) -> None:
    store.add(adder)
    client = make_client(NOBODY, host_store_dir=store.directory)
    file = tmp_path / "adder.wasm"
    file.write_bytes(adder)
    for source in (adder, hashlib.sha256(adder).hexdigest(), file, str(file)):
        assert add(client.module(source, engine="wasmtime")) == 42


def test_a_loaded_module_is_loaded_once(
    make_client: Callable[..., Any], store: StoreWriter, adder: bytes
) -> None:
    store.add(adder)
    client = make_client(NOBODY, host_store_dir=store.directory)
    first = client.module(adder)
    assert client.module(hashlib.sha256(adder).hexdigest(), engine="wasmtime") is first
    engine = wasmtime.Engine()
    other = client.module(adder, into=engine)
    assert other is not first
    assert wasmkiln.engine_of(other) is engine
    assert client.module(adder, into=engine) is other


def test_settings_and_engine_belong_together(
    make_client: Callable[..., Any], store: StoreWriter, adder: bytes
) -> None:
    store.add(adder)
    store.add(adder, {"consume_fuel": "true"})
    client = make_client(NOBODY, host_store_dir=store.directory)
    fueled = client.module(adder, settings={"consume_fuel": "true"})
    engine_store = wasmtime.Store(wasmkiln.engine_of(fueled))
    engine_store.set_fuel(1000)
    assert wasmtime.Instance(engine_store, fueled, [])
    assert add(client.module(adder)) == 42


def test_an_unchanged_file_is_hashed_once(
    make_client: Callable[..., Any],
    store: StoreWriter,
    adder: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.add(adder)
    file = tmp_path / "adder.wasm"
    file.write_bytes(adder)
    hashed: list[Any] = []
    real = hashlib.sha256

    def counted(*content: bytes) -> Any:
        if not content:  # that of a file, which is hashed part by part
            hashed.append(file)
        return real(*content)

    monkeypatch.setattr(hashlib, "sha256", counted)
    client = make_client(NOBODY, host_store_dir=store.directory)
    client.module(file)
    client.module(file)
    assert len(hashed) == 2, "a file that was written a moment ago may change unseen"
    monkeypatch.setattr(host_store, "is_racy", lambda _: False)
    for _ in range(3):
        client.module(file)
    assert len(hashed) == 3
    other = wasm.adder(8)
    store.add(other)
    assert len(other) == len(adder)
    file.write_bytes(other)
    os.utime(file, ns=(file.stat().st_atime_ns, 1))
    assert client.module(file) is client.module(other)
    assert len(hashed) == 4


def test_the_daemon_names_a_file(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    store: StoreWriter,
    adder: bytes,
    tmp_path: Path,
) -> None:
    path = store.add(adder)
    (store.directory / "engines.json").unlink()
    name_file(daemon, store, path, adder)
    client = make_client(daemon.address, host_store_dir=store.directory / "elsewhere")
    assert add(client.module(adder)) == 42
    [request] = daemon.requests("Compile")
    assert request.accept_host_file


@pytest.mark.parametrize("wrong", ["inode", "path", "mode"])
def test_a_file_that_cannot_be_opened_is_sent_as_bytes(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    store: StoreWriter,
    adder: bytes,
    code: bytes,
    wrong: str,
) -> None:
    path = store.add(adder)
    name_file(daemon, store, path, adder)
    daemon.artifact = code
    assert daemon.host_file
    if wrong == "inode":
        daemon.host_file.inode += 1
    elif wrong == "path":
        daemon.host_file.path = str(path.parent / "elsewhere" / "artifact")
    else:
        path.chmod(0o666)
    client = make_client(daemon.address, host_store_dir=store.directory / "elsewhere")
    daemon.modules[hashlib.sha256(adder).hexdigest()] = adder
    assert add(client.module(adder)) == 42
    assert [each.accept_host_file for each in daemon.requests("Compile")] == [True, False]
    assert client.module(adder, into=wasmtime.Engine()) is not None
    asked = [each.accept_host_file for each in daemon.requests("Compile")]
    assert asked == [True, False, False], "the client asks for no files for a while"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "artifact",
            "/",
            "/etc/passwd",
            "relative/artifact",
            "/\0/artifact",
            "/" + "a/" * 5000,
        ),
        "{store}/../store/{fingerprint}/{start}/{module}/artifact",
        "{store}/{fingerprint}/{start}/{other}/artifact",
        "{store}/./{fingerprint}/{start}/{module}/artifact.json",
    ],
)
def test_a_daemon_may_name_any_path(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    store: StoreWriter,
    adder: bytes,
    code: bytes,
    path: str,
) -> None:
    artifact = store.add(adder)
    name_file(daemon, store, artifact, adder)
    other = store.add(wasm.adder(8))
    assert daemon.host_file
    module = hashlib.sha256(adder).hexdigest()
    daemon.host_file.path = path.format(
        store=store.directory,
        fingerprint=artifact.parents[2].name,
        start=module[:2],
        module=module,
        other=other.parent.name,
    )
    daemon.artifact = code
    client = make_client(daemon.address, host_store_dir=store.directory / "elsewhere")
    assert add(client.module(adder)) == 42
    assert [each.accept_host_file for each in daemon.requests("Compile")] == [True, False]


def test_without_a_host_store_the_client_takes_bytes_only(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    store: StoreWriter,
    adder: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name_file(daemon, store, store.add(adder), adder)
    client = make_client(daemon.address, host_store_dir="none")
    assert add(client.module(adder)) == 42
    [request] = daemon.requests("Compile")
    assert not request.accept_host_file
    monkeypatch.setenv("WASMKILN_HOST_STORE_DIR", "none")
    for each in (client, make_client(daemon.address)):
        with pytest.raises(errors.HostFileUnavailable, match="uses no host store") as caught:
            each.host_file(adder)
        assert caught.value.metadata == {"cause": "switched_off"}
    assert len(daemon.calls) == 1


@pytest.mark.parametrize(
    ("wrong", "cause", "detail"),
    [
        ("mode", "refused", "users other than the owner can write to the file artifact"),
        ("gone", "refused", "No such file"),
        ("inode", "refused", "another file here than the daemon's"),
        ("no file", "not_named", "named no file"),
    ],
)
def test_why_there_is_no_file(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    store: StoreWriter,
    adder: bytes,
    wrong: str,
    cause: str,
    detail: str,
) -> None:
    path = store.add(adder)
    name_file(daemon, store, path, adder)
    assert daemon.host_file
    if wrong == "mode":
        path.chmod(0o666)
    elif wrong == "gone":
        path.unlink()
    elif wrong == "inode":
        daemon.host_file.inode += 1
    else:
        daemon.host_file = None
    client = make_client(daemon.address, host_store_dir=store.directory / "elsewhere")
    with pytest.raises(errors.HostFileUnavailable, match=detail) as caught:
        client.host_file(adder)
    assert caught.value.metadata["cause"] == cause
    assert detail in caught.value.metadata["detail"]


def name_file(daemon: FakeDaemon, store: StoreWriter, path: Path, module: bytes) -> None:
    """Have the daemon answer with the name of an entry's file, where a call accepts it."""
    status = path.stat()
    fingerprint = path.parents[2].name
    daemon.modules[hashlib.sha256(module).hexdigest()] = module
    daemon.artifact = path.read_bytes()
    daemon.host_file = types.HostFile(path=str(path), device=status.st_dev, inode=status.st_ino)
    daemon.header_changes = {"fingerprint": fingerprint}


class TestFallback:
    def test_compiles_here_without_a_daemon(
        self, make_client: Callable[..., Any], adder: bytes
    ) -> None:
        client = make_client(NOBODY, host_store_dir="none", timeout_s=20)
        assert add(client.module(adder, fallback="compile")) == 42
        fueled = client.module(adder, fallback="compile", settings={"consume_fuel": "true"})
        wasmtime.Store(wasmkiln.engine_of(fueled)).set_fuel(1)
        with pytest.raises(errors.ConnectionFailed):
            client.module(wasm.adder(9))
        with pytest.raises(errors.ConnectionFailed):
            client.module("0" * 64, fallback="compile")

    def test_not_for_what_is_the_module_s_fault(
        self, make_client: Callable[..., Any], daemon: FakeDaemon, adder: bytes
    ) -> None:
        client = make_client(daemon.address, host_store_dir="none")
        code = grpc.StatusCode.FAILED_PRECONDITION
        daemon.refuse(Refusal(code, "MODULE_QUARANTINED"))
        with pytest.raises(errors.ModuleQuarantined):
            client.module(adder, fallback="compile")
        daemon.refuse(Refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING"))
        assert add(client.module(adder, fallback="compile")) == 42
        assert len(daemon.requests("Compile")) == 2, "one attempt each"
        other = wasm.adder(8)
        daemon.modules[hashlib.sha256(other).hexdigest()] = other
        daemon.header_changes = {"module_sha256": "ab" * 32}
        with pytest.raises(errors.ArtifactMismatch):
            client.module(other, fallback="compile")

    def test_stops_waiting_at_the_deadline(
        self, make_client: Callable[..., Any], adder: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = threading.Event()
        monkeypatch.setattr("wasmkiln.loading.compile_here", lambda *_: stuck.wait(30))
        client = make_client(NOBODY, host_store_dir="none", timeout_s=1)
        with pytest.raises(errors.DeadlineExceeded, match="in this process"):
            client.module(adder, fallback="compile")
        stuck.set()

    def test_text_is_not_compiled(self, make_client: Callable[..., Any]) -> None:
        client = make_client(NOBODY, host_store_dir="none")
        with pytest.raises(errors.NotWasm):
            client.module(b"(module)", fallback="compile")

    def test_another_machine_s_target_is_not(
        self, make_client: Callable[..., Any], adder: bytes
    ) -> None:
        client = make_client(NOBODY, host_store_dir="none")
        with pytest.raises(errors.IncompatibleEngine):
            client.module(adder, fallback="compile", target="riscv64-unknown-linux-gnu")
        assert client.module(adder, fallback="compile", cpu="baseline")

    def test_an_id_is_that_very_version(
        self, make_client: Callable[..., Any], adder: bytes
    ) -> None:
        client = make_client(NOBODY, host_store_dir="none", max_attempts=1)
        here = importlib.metadata.version("wasmtime")
        assert add(client.module(adder, engine=f"wasmtime-{here}", fallback="compile")) == 42
        for version in ("12.0.0", f"{here}.1"):
            with pytest.raises(errors.IncompatibleEngine, match="is installed") as caught:
                client.module(adder, engine=f"wasmtime-{version}", fallback="compile")
            assert isinstance(caught.value.__cause__, errors.ConnectionFailed)
        with pytest.raises(errors.EngineNotInstalled):
            client.module(adder, engine="setuptools-1", fallback="compile")

    def test_a_name_stands_for_the_version_here(
        self, make_client: Callable[..., Any], store: StoreWriter, adder: bytes
    ) -> None:
        """Also where the host store knows which version to ask the daemon for."""
        newer = {**ROW, "id": "wasmtime-99.0.0", "version": "99.0.0", "core_version": "99"}
        row = {**ROW, "id": "wasmtime-50.7.7", "version": "50.7.7"}
        store.rows[:] = [newer, row]
        store.write_engines()
        client = make_client(NOBODY, host_store_dir=store.directory)
        assert add(client.module(adder, engine="wasmtime", fallback="compile")) == 42

    @pytest.mark.parametrize("reason", ["ENGINE_UNKNOWN", "TARGET_UNSUPPORTED", "SETTING_UNKNOWN"])
    def test_what_the_request_asks_for_is_not_compiled_around(
        self, make_client: Callable[..., Any], daemon: FakeDaemon, adder: bytes, reason: str
    ) -> None:
        client = make_client(daemon.address, host_store_dir="none")
        daemon.refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, reason))
        with pytest.raises(errors.WasmkilnError) as caught:
            client.module(adder, engine="wasmtime", fallback="compile")
        assert caught.value.reason == reason

    def test_an_unknown_cpu_or_setting_is_refused(
        self, make_client: Callable[..., Any], adder: bytes
    ) -> None:
        client = make_client(NOBODY, host_store_dir="none", max_attempts=1)
        with pytest.raises(errors.IncompatibleEngine, match="the cpu x86-64-v9: this client"):
            client.module(adder, fallback="compile", cpu="x86-64-v9")
        with pytest.raises(errors.IncompatibleEngine, match="engine with consume_fuelx=true"):
            client.module(adder, fallback="compile", settings={"consume_fuelx": "true"})


def test_into_another_engine_says_what_to_do(
    make_client: Callable[..., Any], daemon: FakeDaemon, adder: bytes, code: bytes
) -> None:
    daemon.artifact = code
    client = make_client(daemon.address, host_store_dir="none")
    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    with pytest.raises(errors.IncompatibleEngine, match=r"or leave out `into`$"):
        client.module(adder, into=engine)
    artifact = client.compile(adder, engine="wasmtime")
    with pytest.raises(errors.IncompatibleEngine, match=r"artifact.engine\(\) is an engine that"):
        artifact.load(engine)


def test_of_several_versions_the_one_that_fits(
    make_client: Callable[..., Any], daemon: FakeDaemon, store: StoreWriter, adder: bytes
) -> None:
    store.add(adder)
    newer = {**ROW, "id": "wasmtime-99.0.0", "version": "99.0.0", "core_version": "99.0.0"}
    store.rows.insert(0, newer)
    store.write_engines()
    client = make_client(daemon.address, host_store_dir=store.directory)
    assert add(client.module(adder, engine="wasmtime")) == 42
    daemon.refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID"))
    with pytest.raises(errors.ModuleInvalid):
        client.module(wasm.adder(3), engine="wasmtime")
    assert daemon.requests("Compile")[-1].engine == "wasmtime-50.0.1"


def test_a_file_that_changes_meanwhile_is_told(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    adder: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "m.wasm"
    file.write_bytes(wasm.adder(1))

    def changed_first(source: Any) -> Any:
        file.write_bytes(adder)
        return identify(source)

    monkeypatch.setattr("wasmkiln.client.identify", changed_first)
    daemon.artifact = bytes(wasmtime.Module(wasmtime.Engine(), adder).serialize())
    client = make_client(daemon.address, host_store_dir="none")
    with pytest.raises(OSError, match="changed during a call: ask again"):
        client.module(file)
    assert client.module(file) is client.module(adder)


def test_the_least_recently_used_is_forgotten() -> None:
    held = LoadedModules(limit=2)
    one, two, three = (Loaded(object(), is_fast=False) for _ in range(3))
    held.put(("a",), None, one)
    held.put(("b",), None, two)
    assert held.get(("a",), None) is one
    held.put(("c",), None, three)
    assert held.get(("b",), None) is None
    assert held.put(("a",), None, two) is one.module, "what came first stays"


class TestFast:
    @pytest.fixture
    def fast(self, daemon: FakeDaemon, adder: bytes) -> FakeDaemon:
        """A daemon that has fast code only, as yet."""
        engine = loading._engine((("strategy", "winch"),))
        daemon.modules[hashlib.sha256(adder).hexdigest()] = adder
        daemon.fast_artifact = bytes(wasmtime.Module(engine, adder).serialize())
        daemon.artifact = bytes(wasmtime.Module(wasmtime.Engine(), adder).serialize())
        return daemon

    def test_it_is_replaced_once_the_daemon_has_better_code(
        self,
        make_client: Callable[..., Any],
        fast: FakeDaemon,
        adder: bytes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        client = make_client(fast.address, host_store_dir="none")
        first = client.module(adder, accept_fast=True)
        assert add(first) == 42
        for _ in range(5):
            assert client.module(adder, accept_fast=True) is first
        assert len(fast.requests("Compile")) == 1, "not more than one look a second"
        monkeypatch.setattr("wasmkiln.loading.LOOK_AGAIN_S", 0)
        assert client.module(adder, accept_fast=True) is first
        _, look = fast.requests("Compile")
        assert look.omit_artifact
        assert look.engine == "wasmtime"
        fast.fast_artifact = b""
        better = client.module(adder, accept_fast=True)
        assert better is not first
        assert add(better) == 42
        calls = len(fast.calls)
        assert client.module(adder, accept_fast=True) is better
        assert client.module(adder) is better
        assert len(fast.calls) == calls

    def test_it_is_replaced_from_the_host_store(
        self,
        make_client: Callable[..., Any],
        fast: FakeDaemon,
        adder: bytes,
        store: StoreWriter,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("wasmkiln.loading.LOOK_AGAIN_S", 0)
        client = make_client(fast.address, host_store_dir=store.directory)
        first = client.module(adder, accept_fast=True)
        fast.refuse(Refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING"))
        assert client.module(adder, accept_fast=True) is first, "a failed look harms nothing"
        store.add(adder)
        calls = len(fast.calls)
        assert client.module(adder, accept_fast=True) is not first
        assert len(fast.calls) == calls

    @pytest.fixture
    def fast_file(self, fast: FakeDaemon, store: StoreWriter, adder: bytes) -> Path:
        """The path of fast code in the host store; the daemon has optimised code."""
        row = store.rows[0]
        row["settings"] = {**row["settings"], "strategy": "cranelift"}
        row["unhashed_defaults"] = ["strategy"]
        store.write_engines()
        code, fast.fast_artifact = fast.fast_artifact, b""
        return store.write(adder, code, {"strategy": "winch"}, is_fast=True)

    def test_a_fast_file_serves_while_no_daemon_answers(
        self,
        make_client: Callable[..., Any],
        fast: FakeDaemon,
        adder: bytes,
        store: StoreWriter,
        fast_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for fallback in ("compile", None):
            client = make_client(NOBODY, host_store_dir=store.directory)
            first = client.module(adder, accept_fast=True, fallback=fallback)
            assert add(first) == 42
            assert wasmkiln.engine_of(first) is loading._engine((("strategy", "winch"),))
        with pytest.raises(errors.ConnectionFailed):
            client.module(adder)
        with pytest.raises(errors.ConnectionFailed):
            client.module(adder, accept_fast=True, settings={"strategy": "cranelift"})
        monkeypatch.setattr("wasmkiln.loading.LOOK_AGAIN_S", 0)
        assert client.module(adder, accept_fast=True) is first
        store.add(adder)
        assert client.module(adder, accept_fast=True) is client.module(adder)

    def test_optimised_code_of_the_daemon_goes_before_a_fast_file(
        self,
        make_client: Callable[..., Any],
        fast: FakeDaemon,
        adder: bytes,
        store: StoreWriter,
        fast_file: Path,
    ) -> None:
        client = make_client(fast.address, host_store_dir=store.directory)
        best = client.module(adder, accept_fast=True)
        assert wasmkiln.engine_of(best) is loading._engine(())
        look, request = fast.requests("Compile")
        assert look.accept_fast
        assert look.omit_artifact
        assert not request.omit_artifact
        assert client.module(adder) is best
        other = make_client(fast.address, host_store_dir=store.directory)
        fast.refuse(Refusal(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"))
        assert add(other.module(adder, accept_fast=True)) == 42

    def test_a_call_that_does_not_accept_it_gets_optimised_code(
        self, make_client: Callable[..., Any], fast: FakeDaemon, adder: bytes
    ) -> None:
        client = make_client(fast.address, host_store_dir="none")
        first = client.module(adder, accept_fast=True)
        best = client.module(adder)
        assert best is not first
        assert client.module(adder, accept_fast=True) is best
        with pytest.raises(ValueError, match="engine_of"):
            client.module(adder, accept_fast=True, into=wasmtime.Engine())


def test_arguments(make_client: Callable[..., Any], adder: bytes) -> None:
    with pytest.raises(ValueError, match="check_files"):
        make_client(NOBODY, check_files="never")
    client = make_client(NOBODY)
    with pytest.raises(ValueError, match="fallback"):
        client.module(adder, fallback="interpret")
    with pytest.raises(TypeError, match="Engine"):
        client.module(adder, into=object())
    with pytest.raises(LookupError):
        wasmkiln.engine_of(object())


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING"),
        (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
        (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
def test_whoever_is_refused_compiles_nothing_here(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    adder: bytes,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    daemon.refuse(Refusal(code, reason, "not you", retry_after_s=0.0))
    client = make_client(daemon.address, host_store_dir="none")
    with pytest.raises(errors.WasmkilnError) as caught:
        client.module(adder, fallback="compile")
    assert caught.value.reason == reason
    assert len(daemon.calls) == 1


@pytest.mark.parametrize("reason", ["SERVER_DRAINING", "WORKER_UNAVAILABLE", ""])
def test_whoever_compiles_here_is_warned(
    make_client: Callable[..., Any],
    daemon: FakeDaemon,
    adder: bytes,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    daemon.refuse(Refusal(grpc.StatusCode.UNAVAILABLE, reason, "going away"))
    client = make_client(daemon.address, host_store_dir="none")
    with caplog.at_level(logging.WARNING, "wasmkiln"):
        assert add(client.module(adder, fallback="compile")) == 42
    [record] = caplog.records
    assert f"compiling module {hashlib.sha256(adder).hexdigest()} here: " in record.message


def test_a_daemon_that_does_not_answer_leaves_time_to_compile_here(
    make_client: Callable[..., Any], daemon: FakeDaemon, adder: bytes
) -> None:
    daemon.hang.clear()
    client = make_client(daemon.address, host_store_dir="none", timeout_s=8)
    assert add(client.module(adder, fallback="compile")) == 42


def test_a_namespace_has_files_of_its_own(
    make_client: Callable[..., Any], tmp_path: Path, adder: bytes
) -> None:
    directory = tmp_path / "store"
    default, team = StoreWriter(directory), StoreWriter(directory / "ns" / "team-a")
    other = wasm.adder(9)
    default.add(adder)
    team.add(other)
    inside = make_client(NOBODY, host_store_dir=directory, namespace="team-a", max_attempts=1)
    outside = make_client(NOBODY, host_store_dir=directory, max_attempts=1)
    assert add(inside.module(other, engine="wasmtime")) == 42
    assert add(outside.module(adder, engine="wasmtime")) == 42
    for client, module in ((inside, adder), (outside, other)):
        with pytest.raises(errors.ConnectionFailed):
            client.module(module, engine="wasmtime")
    nobody = make_client(NOBODY, host_store_dir=directory, namespace="team-b", max_attempts=1)
    with pytest.raises(errors.ConnectionFailed):
        nobody.module(adder, engine="wasmtime")
