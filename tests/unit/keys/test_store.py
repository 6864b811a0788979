"""The key directory: permissions, rotation, and many processes at once."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from wasmkilnd.signing.files import KeysUnusable
from wasmkilnd.signing.opening import open_ring
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.sealer import DsseSealer
from wasmkilnd.signing.store import KeyStore

from tests.contract.values import artifact


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "state" / "keys")


def test_the_first_start_makes_a_key_that_only_its_owner_can_read(store: KeyStore) -> None:
    before = os.umask(0)  # Whatever the umask is.
    try:
        key = store.ensure()
    finally:
        os.umask(before)
    assert mode(store.folder) == mode(store.folder / "trusted") == 0o700
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == sorted(
        [".lock", "signing.pem", f"{key.public.id}.pem"]
    )
    assert {mode(path) for path in files} == {0o600}
    again = store.ensure()
    assert again.public == key.public
    assert list(store.trusted()) == [key.public.id]


def test_rotation_keeps_the_old_key_trusted_and_forgets_its_private_half(store: KeyStore) -> None:
    old = store.ensure()
    new = store.rotate()
    assert new.public != old.public
    signing = store.signing_key()
    assert signing is not None
    assert signing.public == new.public
    assert set(store.trusted()) == {old.public.id, new.public.id}
    everything = b"".join(p.read_bytes() for p in store.folder.rglob("*") if p.is_file())
    assert old.pem not in everything


def test_generate_replaces_nothing(store: KeyStore) -> None:
    key = store.generate()
    with pytest.raises(KeysUnusable, match="rotate"):
        store.generate()
    assert store.ensure().public == key.public


OTHERS = 54321


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
        open_ring(store.folder, signing_key, ())


@pytest.mark.parametrize("bits", [0o604, 0o620])
def test_a_private_key_that_others_could_read_or_replace_is_refused(
    store: KeyStore, bits: int
) -> None:
    store.ensure()
    file_called(store, "signing.pem").chmod(bits)
    with pytest.raises(KeysUnusable, match=r"other users may (read it|write to it).*chmod"):
        open_ring(store.folder, "", ())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", [".", "signing.pem", "trusted", "trusted/*.pem"])
def test_what_belongs_to_another_user_is_refused(store: KeyStore, name: str) -> None:
    store.ensure()
    os.chown(file_called(store, name), OTHERS, -1)
    with pytest.raises(KeysUnusable, match=f"belongs to user {OTHERS}.*chown"):
        open_ring(store.folder, "", ())


def test_root_may_own_the_keys_of_others(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = store.ensure()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: OTHERS)
    if mine == 0:
        assert open_ring(store.folder, "", ()).signing.public == key.public
        return
    with pytest.raises(KeysUnusable, match=f"belongs to user {mine}"):
        open_ring(store.folder, "", ())


def test_an_open_directory_is_refused_before_there_is_anything_in_it(store: KeyStore) -> None:
    store.folder.mkdir(parents=True)
    store.folder.chmod(0o777)
    with pytest.raises(KeysUnusable, match="other users may write to it"):
        open_ring(store.folder, PrivateKey.generate().base64, ())


def test_a_group_may_read_a_mounted_secret(store: KeyStore) -> None:
    key = store.ensure()
    (store.folder / "signing.pem").chmod(0o440)
    assert store.ensure().public == key.public


def test_a_directory_without_write_access_is_enough_to_sign(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "signing.pem").write_bytes(PrivateKey.generate().pem)
    (folder / "signing.pem").chmod(0o400)
    folder.chmod(0o500)
    ring = open_ring(folder, "", ())
    assert ring.get(ring.signing.public.id) == ring.signing.public


def test_what_is_damaged_is_told_and_not_quoted(store: KeyStore) -> None:
    store.ensure()
    (store.folder / "signing.pem").write_text("hunter2")
    with pytest.raises(KeysUnusable, match=r"signing\.pem: it is not an Ed25519") as caught:
        store.ensure()
    assert "hunter2" not in str(caught.value)
    (store.folder / "trusted" / "x.pem").write_text("hunter2")
    with pytest.raises(KeysUnusable, match=r"x\.pem: expected Ed25519 public keys") as caught:
        store.trusted()
    assert "hunter2" not in str(caught.value)


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeysUnusable, match="Not a directory"):
        KeyStore(tmp_path / "file" / "keys").ensure()


START = """
import sys
from pathlib import Path
from wasmkilnd.signing.store import KeyStore
sys.stdin.readline()
print(KeyStore(Path(sys.argv[1])).ensure().public.id)
"""


def test_processes_that_start_at_once_make_one_key(store: KeyStore) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(store.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:  # All are imported and wait; now they are let go together.
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    ids = {process.communicate()[0].strip() for process in processes}
    assert len(ids) == 1
    assert list(store.trusted()) == list(ids)


# --- the keys of a running daemon ---------------------------------------------------------


def sealer(store: KeyStore) -> DsseSealer:
    ring = open_ring(store.folder, "", ())
    return DsseSealer(ring.signing.signer(), ring, "1")


def test_a_running_daemon_believes_a_key_that_was_rotated_in_since(store: KeyStore) -> None:
    running = sealer(store)
    before = running.seal(artifact(1))
    store.rotate()
    restarted = sealer(store)
    after = restarted.seal(artifact(2))
    assert before.attestation != after.attestation
    for one in (before, after):
        for each in (running, restarted):
            assert each.verify(one, one.key) is None


def test_a_trusted_key_file_that_lies_about_its_name_is_not_believed(store: KeyStore) -> None:
    running = sealer(store)
    other = sealer(KeyStore(store.folder.parent / "other"))
    stranger = other.seal(artifact(1))
    key = KeyStore(store.folder.parent / "other").ensure().public
    path = store.folder / "trusted" / f"{key.id}.pem"
    path.write_text(PrivateKey.generate().public.pem)
    refusal = running.verify(stranger, stranger.key)
    assert refusal is not None
    assert refusal.cause == "stranger"
    path.write_text(key.pem)
    assert running.verify(stranger, stranger.key) is None


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
    refusal = running.verify(stranger, stranger.key)
    assert refusal is not None
    assert refusal.cause == "stranger"
    refusal = running.check_stamp(b"head", other.stamp(b"head"))
    assert refusal is not None
    assert refusal.cause == "stranger"


def test_a_signing_key_that_is_no_text_is_told(store: KeyStore) -> None:
    store.ensure()
    (store.folder / "signing.pem").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KeysUnusable, match=r"signing\.pem: it is not an Ed25519"):
        store.ensure()


def test_a_fleet_shares_a_key_by_environment_and_makes_none(tmp_path: Path) -> None:
    shared, other = PrivateKey.generate(), PrivateKey.generate()
    ring = open_ring(tmp_path / "keys", shared.base64, (other.public.hex,))
    assert ring.signing.public == shared.public
    assert set(ring.trusted) == {shared.public.id, other.public.id}
    assert not (tmp_path / "keys").exists()


def test_settings_that_hold_no_key_are_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match="WASMKILN_SIGNING_KEY: ") as caught:
        open_ring(tmp_path, "hunter2", ())
    assert "hunter2" not in str(caught.value)
    with pytest.raises(KeysUnusable, match="WASMKILN_TRUSTED_KEYS: ") as caught:
        open_ring(tmp_path, "", ("hunter2",))
    assert "hunter2" not in str(caught.value)
