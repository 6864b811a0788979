"""The key directory: permissions, and what a running daemon finds in it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from wasmkiln.attestation import TrustedKeys
from wasmkilnd.model import Refusal
from wasmkilnd.settings_loader import load
from wasmkilnd.signing.keys import Keys, KeyStore, KeysUnusable, PrivateKey, open_keys
from wasmkilnd.signing.sealer import Sealer

from tests.contract.values import artifact


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "state" / "keys")


OTHERS = 54321


def opened(folder: Path, signing_key: str = "", trusted_keys: tuple[str, ...] = ()) -> Keys:
    """Return the keys that a daemon with these settings uses."""
    given = {"keys_dir": str(folder), "trusted_keys": trusted_keys}
    environ = {"WASMKILN_SIGNING_KEY": signing_key} if signing_key else {}
    return open_keys(load(given, environ).settings)


def file_called(store: KeyStore, name: str) -> Path:
    """Return a file or folder of the key directory; ``*`` stands for the key's id."""
    [path] = store.folder.glob(name) if "*" in name else [store.folder / name]
    return path


@pytest.mark.parametrize("signing_key", ["", PrivateKey.generate().base64], ids=["own", "given"])
@pytest.mark.parametrize(
    ("name", "bits"),
    [(".", 0o770), ("trusted", 0o707), ("trusted/*.pem", 0o622), ("trusted/*.pem", 0o660)],
)
def test_keys_that_others_could_add_or_replace_are_refused(
    store: KeyStore, name: str, bits: int, signing_key: str
) -> None:
    store.ensure()
    file_called(store, name).chmod(bits)
    with pytest.raises(KeysUnusable, match=r"other users may write to it.*chmod"):
        opened(store.folder, signing_key)


@pytest.mark.parametrize("bits", [0o604, 0o620])
def test_a_private_key_that_others_could_read_or_replace_is_refused(
    store: KeyStore, bits: int
) -> None:
    store.ensure()
    file_called(store, "signing.pem").chmod(bits)
    with pytest.raises(KeysUnusable, match=r"other users may (read it|write to it).*chmod"):
        opened(store.folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", [".", "signing.pem", "trusted", "trusted/*.pem"])
def test_what_belongs_to_another_user_is_refused(store: KeyStore, name: str) -> None:
    store.ensure()
    os.chown(file_called(store, name), OTHERS, -1)
    with pytest.raises(KeysUnusable, match=f"belongs to user {OTHERS}.*chown"):
        opened(store.folder)


def test_root_may_own_the_keys_of_others(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = store.ensure()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: OTHERS)
    if mine == 0:
        assert opened(store.folder).own_id == key.public.id
        return
    with pytest.raises(KeysUnusable, match=f"belongs to user {mine}"):
        opened(store.folder)


def test_a_directory_without_write_access_is_enough_to_sign(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "signing.pem").write_bytes(PrivateKey.generate().pem)
    (folder / "signing.pem").chmod(0o400)
    folder.chmod(0o500)
    keys = opened(folder)
    assert keys.signing
    assert keys.trusted[keys.own_id] == keys.signing.public


def test_what_is_damaged_is_told_and_not_quoted(store: KeyStore, tmp_path: Path) -> None:
    store.ensure()
    for content in (b"hunter2", b"\xff\xfe\x00"):
        (store.folder / "signing.pem").write_bytes(content)
        with pytest.raises(KeysUnusable, match=r"signing\.pem: it is not an Ed25519") as caught:
            store.ensure()
        assert "hunter2" not in str(caught.value)
    (store.folder / "trusted" / "x.pem").write_text("hunter2")
    with pytest.raises(KeysUnusable, match=r"x\.pem: expected Ed25519 public keys") as caught:
        store.trusted()
    assert "hunter2" not in str(caught.value)
    for setting, given in {
        "WASMKILN_SIGNING_KEY": ("hunter2", ()),
        "WASMKILN_TRUSTED_KEYS": ("", ("hunter2",)),
    }.items():
        with pytest.raises(KeysUnusable, match=f"{setting}: ") as caught:
            opened(tmp_path, *given)
        assert "hunter2" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(KeysUnusable, match="Not a directory"):
        KeyStore(tmp_path / "file" / "keys").ensure()


START = """
import sys
from pathlib import Path
from wasmkilnd.signing.keys import KeysUnusable, KeyStore
print(flush=True)
sys.stdin.readline()
try:
    print(getattr(KeyStore(Path(sys.argv[1])), sys.argv[2])().public.id)
except KeysUnusable:  # Of a command that found the key of another.
    pass
"""


def test_daemons_and_commands_that_start_at_once_make_one_key(store: KeyStore) -> None:
    start = [sys.executable, "-c", START, str(store.folder)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([*start, how], stdin=pipe, stdout=pipe, text=True)
        for how in ("ensure", "ensure", "generate", "generate")
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()  # It waits.
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    made = [process.communicate()[0].strip() for process in processes]
    assert {*made[:2]} == {*store.trusted()} >= {*made[2:]} - {""}
    assert made[2:].count("")
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert file_called(store, "signing.pem").stat().st_mode & 0o777 == 0o600
    assert len(store.trusted()) == 1


# --- the keys of a running daemon ---------------------------------------------------------


def sealer(store: KeyStore) -> Sealer:
    return Sealer(opened(store.folder))


def is_stranger(refusal: Refusal | None) -> bool:
    return refusal is not None and refusal.cause == "stranger"


def test_a_trusted_key_file_counts_by_its_content_and_not_by_its_name(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.signing.sealer.LOOK_EVERY_S", 0)
    running = sealer(store)
    other = sealer(KeyStore(store.folder.parent / "other"))
    stranger = other.seal(artifact(1))
    key = KeyStore(store.folder.parent / "other").ensure().public
    path = store.folder / "trusted" / f"{key.id}.pem"
    path.write_text(PrivateKey.generate().public.pem)
    assert is_stranger(running.verify(stranger, stranger.key))
    path.write_text(key.pem)
    assert running.verify(stranger, stranger.key) is None


def test_a_key_that_the_directory_revokes_does_not_come(store: KeyStore) -> None:
    running = sealer(store)
    other = KeyStore(store.folder.parent / "other")
    stranger = sealer(other).seal(artifact(1))
    store.trust(other.ensure().public)
    store.revoke(other.ensure().public.id)
    assert is_stranger(running.verify(stranger, stranger.key))


class Looks:
    """Notes in which thread the key directory is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[threading.Thread] = []
        read = KeyStore.trusted

        def trusted(store: KeyStore) -> TrustedKeys:
            self.threads.append(threading.current_thread())
            return read(store)

        monkeypatch.setattr(KeyStore, "trusted", trusted)


def test_unknown_signers_cost_one_look_and_none_on_the_event_loop(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkilnd.signing.sealer.LOOK_EVERY_S", 1000)
    running = sealer(store)
    looks = Looks(monkeypatch)

    async def values_arrive() -> None:
        for _ in range(20):
            stranger = PrivateKey.generate()
            stamp = bytes.fromhex(stranger.public.id) + stranger.sign(b"head")
            await running.meet(stranger.public.id)
            assert is_stranger(running.check_stamp(b"head", stamp))

    asyncio.run(values_arrive())
    [thread] = looks.threads
    assert thread is not threading.current_thread()


def test_a_record_on_the_event_loop_has_the_key_looked_up_in_the_background(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = sealer(store)
    store.rotate()
    stamp = sealer(store).stamp(b"head")
    looks = Looks(monkeypatch)

    async def records_arrive() -> None:
        for _ in range(10_000):
            if running.check_stamp(b"head", stamp) is None:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("the key is not known")

    asyncio.run(records_arrive())
    [thread] = looks.threads
    assert thread is not threading.current_thread()


def test_a_value_by_a_key_that_is_met_is_accepted_at_once(store: KeyStore) -> None:
    running = sealer(store)
    store.rotate()
    rotated = sealer(store)

    async def value_arrives() -> None:
        await running.meet(rotated.keys.own_id)
        assert running.check_stamp(b"head", rotated.stamp(b"head")) is None

    asyncio.run(value_arrives())


def test_a_reload_forgets_a_key_that_was_met_and_is_no_longer_there(store: KeyStore) -> None:
    running = sealer(store)
    old = store.rotate()
    made = sealer(store).seal(artifact(1))
    assert running.verify(made, made.key) is None
    store.rotate()
    store.distrust(old.public.id)
    running.use(opened(store.folder), 0)
    assert is_stranger(running.verify(made, made.key))


@pytest.mark.parametrize("kind", ["no text", "open", "a folder"])
def test_a_file_that_cannot_be_believed_is_no_key_for_a_running_daemon(
    store: KeyStore, kind: str
) -> None:
    running = sealer(store)
    other = sealer(KeyStore(store.folder.parent / "other"))
    stranger = other.seal(artifact(1))
    key = KeyStore(store.folder.parent / "other").ensure().public
    path = store.folder / "trusted" / f"{key.id}.pem"
    if kind == "no text":
        path.write_bytes(b"\xff\xfe\x00")
    elif kind == "open":
        path.write_text(key.pem)
        path.chmod(0o666)
    else:
        path.mkdir()
    assert is_stranger(running.verify(stranger, stranger.key))
    assert is_stranger(running.check_stamp(b"head", other.stamp(b"head")))
