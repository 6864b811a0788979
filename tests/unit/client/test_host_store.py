"""Which files of the host store a client loads, and which never."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wasmkiln import Artifact, Client, engine_of, errors, host_store
from wasmkiln._header_fields import Call
from wasmkiln.attestation import TrustedKeys
from wasmkiln.host_store import CheckFiles, Entry, FileChecks, HostStore, Refused
from wasmkiln.shared import HEADER
from wasmkiln.v1 import module_service_pb2 as modules

from tests.attesting import Attester
from tests.e2e import wasm
from tests.host_store_writer import StoreWriter, age

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


@pytest.mark.parametrize("policy", POLICIES)
def test_an_honest_entry_is_loaded_and_mapped(
    store: StoreWriter, adder: bytes, policy: str
) -> None:
    path = store.add(adder)
    age(path)
    module = load(store, adder, **verifying(store, policy))
    assert engine_of(module)
    mapped = any(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert mapped


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "plant",
    [
        "symlink",
        "linked_folder",
        "hard_link",
        "group_writes",
        "others_write",
        "folder_written",
        "pipe",
        "folder",
        "shorter",
        "longer",
        "empty",
        "no_header",
        "other_module",
    ],
)
def test_what_may_not_be_loaded(
    store: StoreWriter, adder: bytes, tmp_path: Path, plant: str, policy: str
) -> None:
    path = store.add(adder)
    aside = tmp_path / "aside"
    content = path.read_bytes()
    if plant == "symlink":
        path.rename(aside)
        path.symlink_to(aside)
    elif plant == "linked_folder":
        path.parent.rename(aside)
        path.parent.symlink_to(aside)
    elif plant == "hard_link":
        aside.hardlink_to(path)
    elif plant == "group_writes":
        path.chmod(0o660)
    elif plant == "others_write":
        path.chmod(0o642)
    elif plant == "folder_written":
        path.parent.chmod(0o777)
    elif plant == "pipe":
        path.unlink()
        os.mkfifo(path, 0o600)
    elif plant == "folder":
        path.unlink()
        path.mkdir()
    elif plant == "shorter":
        path.write_bytes(content[:-1])
    elif plant == "longer":
        path.write_bytes(content + b"\0")
    elif plant == "empty":
        path.write_bytes(b"")
    elif plant == "no_header":
        path.with_name(HEADER).unlink()
    else:
        other = store.add(wasm.adder(8))
        other.parent.rename(aside)
        path.parent.rename(other.parent)
        aside.rename(path.parent)
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


def test_a_file_that_changes_during_the_load_is_noticed(
    store: StoreWriter, adder: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.add(adder)
    age(path)
    real = Entry.check

    def check_then_write(self: Entry, how: FileChecks) -> None:
        real(self, how)
        with path.open("r+b") as file:
            file.seek(200)
            file.write(b"\0")

    monkeypatch.setattr(Entry, "check", check_then_write)
    for policy in POLICIES:
        with pytest.raises(errors.ConnectionFailed):
            load(store, adder, **verifying(store, policy))


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
    assert FileChecks(None, TrustedKeys()).policy == "owner"
    assert FileChecks(None, TrustedKeys.read(stranger)).policy == "once"
    for policy in (None, "always", "once"):
        with pytest.raises(errors.ConnectionFailed):
            load(store, adder, trusted_keys=stranger, check_files=policy)
    assert load(store, adder, trusted_keys=stranger, check_files="owner")


class Store:
    """A store with two entries, which each example alters and then restores."""

    def __init__(self, directory: Path) -> None:
        self.writer = StoreWriter(directory, Attester())
        self.modules = [wasm.adder(7), wasm.adder(8)]
        self.paths = [self.writer.add(each) for each in self.modules]
        self.saved = {
            file: file.read_bytes() for path in self.paths for file in path.parent.iterdir()
        }

    def restore(self) -> None:
        for file, content in self.saved.items():
            file.write_bytes(content)


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("altered") / "store")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_altered_artifact_is_ever_loaded(altered: Store, data: st.DataObject) -> None:
    """Under any policy but "owner": what the engine is given is what the daemon signed."""
    altered.restore()
    policies: list[CheckFiles] = ["always", "once"]
    policy = data.draw(st.sampled_from(policies))
    signed = data.draw(st.booleans())
    victim = data.draw(st.sampled_from(sorted(altered.saved)))
    content = bytearray(victim.read_bytes())
    how = data.draw(st.sampled_from(["flip", "cut", "extend", "swap", "nothing"]))
    if how == "flip":
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif how == "extend":
        content += data.draw(st.binary(min_size=1, max_size=100))
    elif how == "swap":
        one, other = (path.with_name(victim.name) for path in altered.paths)
        swapped = one.read_bytes(), other.read_bytes()
        other.write_bytes(swapped[0])
        one.write_bytes(swapped[1])
    if how not in ("swap", "nothing"):
        victim.write_bytes(content)
    options = verifying(altered.writer, policy) if signed else {"check_files": policy}
    keys = TrustedKeys.choose(options.get("trusted_keys", TrustedKeys()))
    for module, path in zip(altered.modules, altered.paths, strict=True):
        given_to_engine = opened_bytes(altered.writer.directory, module, FileChecks(policy, keys))
        if given_to_engine is not None:
            assert given_to_engine == altered.saved[path]
        elif how == "nothing":
            raise AssertionError("an honest entry was refused")


def opened_bytes(directory: Path, module: bytes, how: FileChecks) -> bytes | None:
    """Return what the client would give to the engine; None for a miss."""
    sha256 = hashlib.sha256(module).hexdigest()
    call = Call(modules.CompileRequest(engine="wasmtime", sha256=sha256), sha256, None)
    try:
        found = HostStore(directory).open(call, lambda _name, _version: True)
    except Refused:
        return None
    try:
        found.check(how)
        return found.bytes
    except Refused:
        return None
    finally:
        found.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_replacement_between_check_and_load_is_not_seen(
    store: StoreWriter, adder: bytes, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    path = store.add(adder)
    age(path)
    real = Entry.check

    def check_then_replace(self: Entry, how: FileChecks) -> None:
        real(self, how)
        if replaced:
            other = path.with_name("other")
            other.write_bytes(bytes(path.stat().st_size))
            other.replace(path)
        else:
            path.unlink()

    monkeypatch.setattr(Entry, "check", check_then_replace)
    # The descriptor still leads to the file that was checked; its link count, and so its ctime,
    # have changed, which counts as a change.
    with pytest.raises(errors.ConnectionFailed):
        load(store, adder, **verifying(store, "once"))


def test_a_file_may_be_evicted_while_it_is_mapped(store: StoreWriter, adder: bytes) -> None:
    path = store.add(adder)
    module = load(store, adder)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    engine_store = wasmtime.Store(engine_of(module))
    run = wasmtime.Instance(engine_store, module, []).exports(engine_store)["add"]
    assert isinstance(run, wasmtime.Func)
    assert run(engine_store, 1, 2) == 3


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


def test_a_store_may_appear_later(tmp_path: Path, adder: bytes) -> None:
    with Client(NOBODY, host_store_dir=tmp_path / "store", max_attempts=1) as client:
        with pytest.raises(errors.ConnectionFailed):
            client.module(adder)
        StoreWriter(tmp_path / "store").add(adder)
        assert client.module(adder)


def test_a_file_s_path(make_client: Callable[..., Any], store: StoreWriter, adder: bytes) -> None:
    path = store.add(adder)
    client = make_client(NOBODY, host_store_dir=store.directory, max_attempts=1)
    assert client.host_file(adder, engine="wasmtime") == path
    assert client.host_file(adder) == path, "the default engine, since the kind is known"
    with pytest.raises(errors.ConnectionFailed):
        client.host_file(hashlib.sha256(adder).hexdigest())


def test_an_artifact_that_was_opened_there_is_mapped(store: StoreWriter, adder: bytes) -> None:
    path = store.add(adder)
    young = Artifact.open(path)
    assert young.file is None, "it was written a moment ago, and might change without a trace"
    age(path)
    artifact = Artifact.open(path)
    before = descriptors()
    modules = [artifact.load(), young.load()]
    assert descriptors() - before == {path: 1}, "what wasmtime itself keeps"
    assert artifact.bytes == path.read_bytes()
    path.chmod(0o600)  # another ctime, so maybe another content
    modules.append(artifact.load())
    assert descriptors() - before == {path: 1}
    saved = artifact.save(path.parents[3] / "saved")
    modules.append(Artifact.open(saved).load())  # Others may be written to in their place.
    assert descriptors() - before == {path: 1}
    assert all(isinstance(each, wasmtime.Module) for each in modules)
