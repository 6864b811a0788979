"""`client.module`, `wasmkiln path` and `artifact.load()` with real daemons, engines and stores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from wasmkiln import Client, IncompatibleEngine, engine_of, errors
from wasmkiln.host_store import Engines

from tests.e2e import wasm
from tests.e2e.daemon import TWO_ENGINES, Daemon
from tests.e2e.fixtures import serving
from tests.e2e.in_engine import run_script
from tests.e2e.programs import WASMKILN, Installed, run

NOBODY = "127.0.0.1:1"
SETTINGS: list[dict[str, str]] = [{}, {"consume_fuel": "true"}]


kiln = serving(*TWO_ENGINES)
"""A daemon with a host store of its own."""


@pytest.fixture(scope="module")
def store(kiln: Daemon) -> Path:
    return kiln.state_dir / "host_store"


def added(store: wasmtime.Store, module: Any) -> object:
    add = wasmtime.Instance(store, module, []).exports(store)["add"]
    assert isinstance(add, wasmtime.Func)
    return add(store, 40, 2)


def add(module: wasmtime.Module) -> object:
    return added(wasmtime.Store(engine_of(module)), module)


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_fingerprints_of_engines_json_are_the_daemon_s(kiln: Daemon, store: Path) -> None:
    engines = Engines.parse((store / "engines.json").read_bytes())
    module = wasm.adder(300)
    with kiln.client() as client:
        for row in client.capabilities().engines:
            for cpu in ("", "baseline", "native"):
                header = client.compile(
                    module, engine=row.engine.id, cpu=cpu, omit_artifact=True
                ).header
                chosen = engines.choose(row.engine.id, "core")
                assert engines.fingerprint(chosen, "", cpu, {}) == header.fingerprint
            for setting in row.settings:
                value = setting.allowed_values[-1]
                wanted = {setting.name: value}
                try:
                    header = client.compile(
                        module, engine=row.engine.id, settings=wanted, omit_artifact=True
                    ).header
                except errors.WasmkilnError:
                    continue  # a combination that the engine itself refuses
                assert engines.fingerprint(chosen, "", "", wanted) == header.fingerprint


def test_the_first_caller_gets_a_file_and_the_next_needs_no_daemon(
    kiln: Daemon, store: Path
) -> None:
    module = wasm.adder(301)
    with Client(kiln.address, host_store_dir=store / "nowhere") as client:
        path = client.host_file(module, engine="wasmtime")
        assert path.is_relative_to(store)
        assert add(client.module(module, engine="wasmtime")) == 42
    with Client(NOBODY, host_store_dir=store, max_attempts=1) as alone:
        assert add(alone.module(wasm.digest(module), engine="wasmtime")) == 42
        assert mapped(path)
        with pytest.raises(errors.ConnectionFailed):
            alone.module(wasm.adder(302), engine="wasmtime")


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_attested_file_is_checked(kiln: Daemon, store: Path, settings: dict[str, str]) -> None:
    module = wasm.adder(303)
    [key] = (kiln.state_dir / "keys" / "trusted").glob("*.pem")
    with kiln.client(host_store_dir=store, trusted_keys=key) as client:
        path = client.host_file(module, engine="wasmtime", settings=settings)
    options: dict[str, Any] = {"host_store_dir": store, "max_attempts": 1}
    with Client(NOBODY, trusted_keys=key, check_files="always", **options) as client:
        assert client.module(module, engine="wasmtime", settings=settings)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    other = path.with_name("other")
    other.write_bytes(content)
    other.chmod(path.stat().st_mode)
    other.replace(path)
    with (
        Client(NOBODY, trusted_keys=key, **options) as client,
        pytest.raises(errors.ConnectionFailed),
    ):
        client.module(module, engine="wasmtime", settings=settings)
    # The daemon heals what the client would not take.
    with Client(kiln.address, trusted_keys=key, host_store_dir=store) as client:
        assert client.module(module, engine="wasmtime", settings=settings)


def test_a_component(kiln: Daemon, store: Path) -> None:
    from wasmtime.component import Component

    module = wasm.from_text("(component)")
    with kiln.client() as client:
        client.host_file(module, engine="wasmtime")
    with Client(NOBODY, host_store_dir=store, max_attempts=1) as alone:
        assert isinstance(alone.module(module), Component)


def test_a_process_that_does_not_see_the_files_gets_bytes(kiln: Daemon, store: Path) -> None:
    """In a mount namespace where the store's place is empty."""
    module = wasm.adder(304)
    with kiln.client() as client:
        client.host_file(module, engine="wasmtime")
    script = (
        "import sys, wasmkiln, wasmtime\n"
        "with wasmkiln.Client(sys.argv[1], host_store_dir='none') as client:\n"
        "    module = client.module(sys.argv[2], engine='wasmtime')\n"
        "    print(wasmtime.Store(wasmkiln.engine_of(module)) is not None)\n"
        "print(sys.argv[3] in open('/proc/self/maps').read())\n"
    )
    command = [sys.executable, "-c", script, kiln.address, wasm.digest(module)]
    apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(store)]
    probe = subprocess.run([*apart, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("this user cannot make a mount namespace")
    done = subprocess.run(
        [*apart, *command, str(store)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_wasmer_in_a_second_process(kiln: Daemon, store: Path, engines: Installed) -> None:
    """On CPython 3.10, the newest Python that wasmer has wheels for, with no daemon."""
    module = wasm.adder(305)
    with kiln.client() as client:
        client.host_file(module, engine="wasmer")
    script = (
        "import sys, wasmkiln, wasmer\n"
        "client = wasmkiln.Client('127.0.0.1:1', host_store_dir=sys.argv[1], max_attempts=1)\n"
        "module = client.module(sys.argv[2], engine='wasmer')\n"
        "assert client.module(sys.argv[2], engine='wasmer') is module\n"
        "assert isinstance(wasmkiln.engine_of(module), wasmer.Store)\n"
        "own = client.module(sys.argv[2], into=wasmer.Store())\n"
        "print(*(wasmer.Instance(each).exports.add(40, 2) for each in (module, own)))\n"
    )
    words = (script, store, wasm.digest(module))
    assert run_script(engines, "wasmer-1.1.0", *words, with_client=True) == "42 42"


FORKING = """
import asyncio, os, signal, sys
from wasmkiln import AsyncClient, Client

address, path = sys.argv[1:]
client, async_client = Client(address, host_store_dir="none"), AsyncClient(address)
client.compile(path)
client.module(path, engine="wasmtime")
{before}
children = []
for child in range(6):
    if not (pid := os.fork()):
        signal.alarm(60)  # which ends a child that hangs
        {within}
        os._exit(0)
    children.append(pid)
    assert client.compile(path).intact()
print(*(os.waitpid(pid, 0)[1] for pid in children))
"""
WORKS = """
        for _ in range(10):
            assert client.compile(path).intact()
        client.module(path, engine="wasmtime", cpu="baseline")
        assert asyncio.run(async_client.compile(path)).intact()
"""
SAYS_SO = """
        try:
            client.compile(path)
        except RuntimeError as error:
            assert "fork before the first call of an AsyncClient" in str(error)
        else:
            os._exit(1)
"""


@pytest.mark.parametrize(
    ("before", "within"),
    [("", WORKS), ("asyncio.run(async_client.compile(path))", SAYS_SO)],
    ids=["blocking calls", "calls of an AsyncClient"],
)
def test_a_client_made_before_a_fork_works_in_each_child(
    kiln: Daemon, tmp_path: Path, before: str, within: str
) -> None:
    """Also one that made calls, as long as no AsyncClient did."""
    module = tmp_path / "adder.wasm"
    module.write_bytes(wasm.adder(307))
    script = FORKING.format(before=before, within=within)
    done = run(sys.executable, "-c", script, kiln.address, module)
    assert done.stdout.split() == ["0"] * 6, done.stderr


def test_the_command_prints_the_path(kiln: Daemon, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "adder.wasm"
    file.write_bytes(wasm.adder(306))

    def path(address: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = ("path", file, "--engine", "wasmtime", "--address", address, *more)
        return run(WASMKILN, *words, WASMKILN_HOST_STORE_DIR=str(store))

    assert path(NOBODY, "--timeout", "2").returncode == 3
    first = path(kiln.address)
    assert first.returncode == 0, first.stderr
    assert Path(first.stdout.strip()).is_relative_to(store)
    assert path(NOBODY).stdout == first.stdout


def test_settings_come_along(client: Client) -> None:
    artifact = client.compile(
        wasm.adder(41), engine="wasmtime-50.0.1", settings={"consume_fuel": "true"}
    )
    module = artifact.load()
    store = wasmtime.Store(artifact.engine())
    store.set_fuel(1000)
    assert added(store, module) == 42
    assert store.get_fuel() < 1000
    with pytest.raises(IncompatibleEngine, match="consume_fuel"):
        artifact.load(wasmtime.Engine())


def test_code_for_no_collector_loads_beside_one(client: Client) -> None:
    artifact = client.compile(
        wasm.adder(47), engine="wasmtime-50.0.1", settings={"collector": "none"}
    )
    for engine in (artifact.engine(), wasmtime.Engine()):
        store = wasmtime.Store(engine)
        assert added(store, artifact.load(engine)) == 42


@pytest.mark.parametrize("text", ["(component)", None], ids=["component", "core module"])
def test_fast_code_comes_with_its_engine(client: Client, text: str | None) -> None:
    module = wasm.from_text(text) if text else wasm.adder(46)
    artifact = client.compile(module, engine="wasmtime-50.0.1", settings={"strategy": "winch"})
    loaded = artifact.load()
    if text is None:
        assert added(wasmtime.Store(artifact.engine()), loaded) == 42
    with pytest.raises(IncompatibleEngine, match=r"strategy=winch.*artifact\.engine\(\)"):
        artifact.load(wasmtime.Engine())
    # The engine of fast code does not fit optimised code either.
    optimised = client.compile(module, engine="wasmtime-50.0.1")
    with pytest.raises(IncompatibleEngine, match="default settings"):
        optimised.load(artifact.engine())


def test_what_cannot_be_loaded_is_refused(client: Client) -> None:
    older = client.compile(wasm.adder(42), engine="wasmtime-49.0.0")
    with pytest.raises(IncompatibleEngine, match="49"):
        older.load()
    foreign = client.compile(wasm.adder(42), engine="wasmer", target="aarch64-apple-darwin")
    with pytest.raises(IncompatibleEngine):
        foreign.load()


def test_wasmer_module(client: Client, engines: Installed, tmp_path: Path) -> None:
    """The client library on CPython 3.10, the newest Python that wasmer has wheels for."""
    saved = client.compile(wasm.adder(44), engine="wasmer").save(tmp_path / "artifact")
    script = (
        "import sys, wasmkiln, wasmer; m = wasmkiln.Artifact.open(sys.argv[1]).load();"
        "print(type(m) is wasmer.Module, wasmer.Instance(m).exports.add(40, 2))"
    )
    told = run_script(engines, "wasmer-1.1.0", script, saved, with_client=True)
    assert told == "True 42"
