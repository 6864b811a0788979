"""Which files of the host store a client loads, and which never."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmkiln import Client, engine_of, errors, host_store
from wasmkiln._header_fields import Call
from wasmkiln.attestation import TrustedKeys
from wasmkiln.cli.app import app
from wasmkiln.host_store import CheckFiles, Engines, Entry, HostStore, Refused
from wasmkiln.shared import HASHED_FORMAT, fingerprint
from wasmkiln.v1.types_pb2 import Engine
from wasmkilnd.settings import default_state_dir

from tests.attesting import Attester
from tests.e2e import wasm
from tests.host_store_writer import ROW, StoreWriter, age

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def adder() -> bytes:
    return wasm.adder(7)


@pytest.fixture
def store(tmp_path: Path) -> StoreWriter:
    return StoreWriter(tmp_path / "store", Attester())


def load(store: StoreWriter, module: bytes, **options: Any) -> Any:
    """Load from the store alone. Raise ConnectionFailed for a miss."""
    with Client(NOBODY, host_store_dir=store.directory, max_attempts=1, **options) as client:
        return client.module(module, engine="wasmtime")


def verifying(store: StoreWriter, policy: str) -> dict[str, Any]:
    assert store.attester
    return {"trusted_keys": store.attester.key.hex, "check_files": policy}


POLICIES = ["always", "once", "owner"]


def test_an_honest_entry_is_loaded_and_mapped(store: StoreWriter) -> None:
    modules = {policy: wasm.adder(tag) for tag, policy in enumerate(POLICIES)}
    paths = {policy: store.add(module) for policy, module in modules.items()}
    age(paths[POLICIES[-1]])
    for policy, module in modules.items():
        loaded = load(store, module, **verifying(store, policy))
        assert str(paths[policy]) in Path("/proc/self/maps").read_text()
        shutil.rmtree(paths[policy].parent)  # The daemon may evict what is mapped.
        engine_store = wasmtime.Store(engine_of(loaded))
        run = wasmtime.Instance(engine_store, loaded, []).exports(engine_store)["add"]
        assert isinstance(run, wasmtime.Func)
        assert run(engine_store, 1, 2) == 3


# What is done in an entry's folder; $other is the folder of another module's.
PLANTS = {
    "a link": "mv artifact $aside; ln -s $aside artifact",
    "a linked folder": "mv $PWD $aside; ln -s $aside $PWD",
    "a second name": "ln artifact $aside",
    "its group writes": "chmod 660 artifact",
    "others write": "chmod 642 artifact",
    "others write to the folder": "chmod 777 .",
    "a pipe": "rm artifact; mkfifo -m 600 artifact",
    "a folder": "rm artifact; mkdir artifact",
    "one byte less": "truncate -s -1 artifact",
    "one byte more": "truncate -s +1 artifact",
    "no bytes": "truncate -s 0 artifact",
    "no header": "rm artifact.json",
    "another fingerprint": """sed -i 's/"fingerprint": "./"fingerprint": "x/' artifact.json""",
    "another module's": "mv $other $aside; mv $PWD $other; mv $aside $PWD",
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_may_not_be_loaded(
    store: StoreWriter, adder: bytes, tmp_path: Path, plant: str, policy: str
) -> None:
    folder = store.add(adder).parent
    places: dict[str, Any] = {"other": store.add(wasm.adder(8)).parent, "aside": tmp_path / "aside"}
    subprocess.run(["sh", "-ec", plant], cwd=folder, env={**os.environ, **places}, check=True)
    with pytest.raises(errors.ConnectionFailed):
        load(store, adder, **verifying(store, policy))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
@pytest.mark.parametrize("what", ["file", "folder", "store"])
def test_owners(store: StoreWriter, adder: bytes, what: str, tmp_path: Path) -> None:
    path = store.add(adder)
    given_away = {"file": path, "folder": path.parent, "store": store.directory}[what]
    os.chown(given_away, 12345, -1)
    # Below a folder where everybody can make folders, the store's owner is nobody special.
    with pytest.raises(errors.ConnectionFailed):
        load(store, adder)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_the_store_s_owner_where_only_root_could_have_made_it(tmp_path: Path) -> None:
    status = tmp_path.stat()
    above = tmp_path / "var" / "cache"
    above.mkdir(parents=True)
    assert host_store.owners(str(tmp_path), status) == {0}
    directory = above / "wasmkiln"
    directory.mkdir()
    os.chown(directory, 12345, -1)
    real = os.stat
    below_root = {str(each) for each in tmp_path.parents}

    def stat(path: Any, **options: Any) -> os.stat_result:
        return real("/" if str(path) in below_root else path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)  # as if the temporary folder were root's
        assert host_store.owners(str(directory), directory.stat()) == {0, 12345}
        above.chmod(0o1777)
        assert host_store.owners(str(directory), directory.stat()) == {0}


def write(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"\0")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


# The descriptor still leads to a file that is replaced or removed; but its link count, and so its
# ctime, have changed, which counts as a change.
@pytest.mark.parametrize("change", [write, replace, Path.unlink])
def test_a_file_that_changes_between_check_and_load_is_noticed(
    store: StoreWriter, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    modules = {policy: wasm.adder(tag) for tag, policy in enumerate(POLICIES)}
    for module in modules.values():
        age_of = store.add(module)
    age(age_of)
    real = HostStore.check

    def check_then_change(self: HostStore, entry: Entry) -> None:
        real(self, entry)
        assert entry.content is None, "it is mapped"
        change(entry.path)

    monkeypatch.setattr(HostStore, "check", check_then_change)
    for policy, module in modules.items():
        with pytest.raises(errors.ConnectionFailed):
            load(store, module, **verifying(store, policy))


def test_a_young_file_is_copied(
    store: StoreWriter, adder: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.add(adder)
    content = path.read_bytes()
    seen: list[bytes] = []
    real = wasmtime.Module.deserialize

    def deserialize(engine: Any, copy: bytes) -> Any:
        path.write_bytes(bytes(len(content)))  # within the same tick of the clock
        seen.append(copy)
        return real(engine, copy)

    monkeypatch.setattr(wasmtime.Module, "deserialize", deserialize)
    assert load(store, adder, **verifying(store, "once"))
    assert seen == [content]


def test_a_check_is_remembered_until_the_file_changes(
    store: StoreWriter, adder: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.add(adder)
    age(path)
    hashed: list[int] = []
    real = hashlib.sha256

    def counted(*content: bytes) -> Any:
        if not content:  # that of a file, which is hashed part by part
            hashed.append(1)
        return real(*content)

    monkeypatch.setattr(hashlib, "sha256", counted)
    for _ in range(2):
        load(store, adder, **verifying(store, "once"))
    assert len(hashed) == 1
    os.utime(path)
    age(path)
    load(store, adder, **verifying(store, "once"))
    assert len(hashed) == 2
    for _ in range(2):
        load(store, adder, **verifying(store, "always"))
    assert len(hashed) == 4
    load(store, adder, **verifying(store, "owner"))
    assert len(hashed) == 4


def test_keys_are_asked_for_by_policy(store: StoreWriter, adder: bytes) -> None:
    store.add(adder)
    stranger = Attester().key.hex
    for policy in (None, "always", "once"):
        with pytest.raises(errors.ConnectionFailed):
            load(store, adder, trusted_keys=stranger, check_files=policy)
    assert load(store, adder, trusted_keys=stranger, check_files="owner")


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoreWriter, dict[Path, bytes]]:
    """A store, and the files of its entry, which each example alters and the next restores."""
    store = StoreWriter(tmp_path_factory.mktemp("altered") / "store", Attester())
    folder = store.add(wasm.adder(7)).parent
    return store, {file: file.read_bytes() for file in sorted(folder.iterdir())}


@settings(max_examples=300)
@given(data=st.data(), policy=st.sampled_from(["always", "once"]), signed=st.booleans())
def test_no_altered_artifact_is_ever_loaded(
    entry: tuple[StoreWriter, dict[Path, bytes]],
    data: st.DataObject,
    policy: CheckFiles,
    signed: bool,
) -> None:
    """Under any policy but "owner": what the engine is given is what the daemon signed."""
    store, saved = entry
    for file, content in saved.items():
        file.write_bytes(content)
    victim = data.draw(st.sampled_from(list(saved)))
    altered = bytearray(saved[victim])
    how = data.draw(st.sampled_from(["flip", "cut", "extend", "nothing"]))
    if how == "flip":
        for _ in range(data.draw(st.integers(1, 5))):
            altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del altered[data.draw(st.integers(0, len(altered) - 1)) :]
    elif how == "extend":
        altered += data.draw(st.binary(min_size=1, max_size=100))
    victim.write_bytes(altered)
    sha256 = hashlib.sha256(wasm.adder(7)).hexdigest()
    call = Call(sha256, None, "wasmtime")
    keys = TrustedKeys.read(verifying(store, policy)["trusted_keys"]) if signed else TrustedKeys()
    try:
        place = HostStore(store.directory, "", policy, keys)
        with closing(place.open(call, lambda _name, _version: True)) as found:
            place.check(found)
            assert found.bytes == next(iter(saved.values()))
    except Refused:
        assert how != "nothing"


def test_no_descriptor_is_left_open(store: StoreWriter, adder: bytes) -> None:
    path = store.add(adder)
    damaged = store.add(wasm.adder(8))
    damaged.chmod(0o666)
    with Client(NOBODY, host_store_dir=store.directory, max_attempts=1) as client:
        held = [client.module(adder)]
        with pytest.raises(errors.ConnectionFailed):
            client.module(wasm.adder(8))
        before = descriptors()
        for _ in range(20):
            held.append(client.module(adder, into=wasmtime.Engine()))
            with pytest.raises(errors.ConnectionFailed):
                client.module(wasm.adder(8))
        new = descriptors() - before
    # wasmtime itself keeps the file of a module that it has mapped.
    assert new == {path: 20}


def descriptors() -> Counter[Path]:
    """Return what this process has open below the store, and how often."""
    found: Counter[Path] = Counter()
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            target = each.readlink()
            if "store" in target.parts:
                found[target] += 1
    return found


def test_a_store_may_appear_later(
    make_client: Callable[..., Any], tmp_path: Path, adder: bytes
) -> None:
    client = make_client(NOBODY, host_store_dir=tmp_path / "store", max_attempts=1)
    with pytest.raises(errors.ConnectionFailed):
        client.module(adder)
    path = StoreWriter(tmp_path / "store").add(adder)
    assert client.module(adder)
    assert client.host_file(adder, engine="wasmtime") == path
    assert client.host_file(adder) == path, "the default engine, since the kind is known"
    with pytest.raises(errors.ConnectionFailed):
        client.host_file(hashlib.sha256(adder).hexdigest())


def test_the_command_prints_the_path(
    store: StoreWriter, adder: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "adder.wasm"
    file.write_bytes(adder)
    artifact = store.add(adder)
    monkeypatch.setenv("WASMKILN_ADDRESS", NOBODY)
    monkeypatch.setenv("WASMKILN_HOST_STORE_DIR", str(store.directory))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ("path", *arguments))

    for source in (str(file), hashlib.sha256(adder).hexdigest()):
        assert run(source, "--engine", "wasmtime").stdout == f"{artifact}\n"
    assert json.loads(run(str(file), "--json").stdout) == {"path": str(artifact)}
    monkeypatch.setenv("WASMKILN_HOST_STORE_DIR", "none")
    refused = run(str(file), "--json")
    assert refused.exit_code == 1
    assert "uses no host store" in refused.stderr


# --- its place, and engines.json ------------------------------------------------------------


def test_where_a_store_is(tmp_path: Path) -> None:
    for environ in (
        {"XDG_STATE_HOME": str(tmp_path), "HOME": "/h"},
        {"XDG_STATE_HOME": "relative", "HOME": "/h"},
        {"HOME": "/h"},
    ):
        expected = [default_state_dir(environ) / "host_store", host_store.SYSTEM]
        assert host_store.candidates(None, environ) == expected
    environ = {host_store.ENV: "/env"}
    assert host_store.candidates(tmp_path, environ) == [tmp_path]
    assert host_store.candidates(None, environ) == [Path("/env")]
    assert host_store.candidates("none", environ) == []


def test_the_fingerprint_of_a_request() -> None:
    row = {**ROW, "fingerprint": "f" * 64}
    engines = Engines(HASHED_FORMAT, (row,))
    assert engines.fingerprint(row, "", "", {}) == "f" * 64, "the one that the daemon wrote"
    engine = Engine(**{name: row[name] for name in ("name", "version", "core_version", "compiler")})
    host, settings = row["targets"][0]["triple"], row["settings"]
    for target, cpu, features, chosen in (
        (host, "", [], {}),
        ("", "x86-64-v3", [], {}),
        ("", "native", ["avx2"], {}),
        ("", "", [], {"consume_fuel": "true"}),
    ):
        expected = fingerprint(engine, host, cpu or "baseline", features, {**settings, **chosen})
        assert engines.fingerprint(row, target, cpu, chosen) == expected
    for wrong in (("riscv", "", {}), ("", "x86-64-v9", {}), ("", "", {"fuel": "true"})):
        with pytest.raises(Refused):
            engines.fingerprint(row, *wrong)
    with pytest.raises(Refused, match=r"engines\.json lacks"):
        engines.fingerprint({**row, "settings": None}, host, "", {})


def test_engines_are_chosen_as_the_daemon_does() -> None:
    old = {**ROW, "id": "wasmtime-49.0.0", "version": "49.0.0", "default": False}
    wasmer = {**ROW, "id": "wasmer-1.1.0", "name": "wasmer", "kinds": ["core"]}
    engines = Engines(2, (wasmer, {**ROW, "default": False}, old))
    assert engines.choose("", "core")["id"] == "wasmer-1.1.0"
    assert engines.choose("", "component")["id"] == "wasmtime-50.0.1"
    assert engines.choose("wasmtime", "")["id"] == "wasmtime-50.0.1"
    assert engines.choose("wasmtime-49.0.0", "")["id"] == "wasmtime-49.0.0"
    fits = lambda _, version: version.startswith("49.")  # noqa: E731
    assert engines.choose("wasmtime", "", fits)["id"] == "wasmtime-49.0.0"
    for engine, kind in (("v8", "core"), ("", "")):
        with pytest.raises(Refused):
            engines.choose(engine, kind)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b"{}", b'{"version":2}', b'{"version":1,"engines":[]}', b"\xff"),
        *(b"[" * 100_000, b'{"version":1,"cache_format":2,"engines":[5]}'),
    ],
)
def test_other_documents_are_no_engines(text: bytes) -> None:
    with pytest.raises(Refused):
        Engines.parse(text)
