"""`wasmkilnd keys`, as people run it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import PublicKey

from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.e2e.test_daemon import wasmkilnd


class Keys:
    """Runs it on one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = KeyDirectory(folder)

    def __call__(self, *words: str, **environ: str) -> str:
        """Run a command that has to succeed; return its standard output."""
        done = wasmkilnd("keys", *words, "--keys-dir", str(self.folder), **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def rows(self, **environ: str) -> dict[str, dict[str, Any]]:
        """Return what `ls` lists, by id."""
        return {row["id"]: row for row in json.loads(self("ls", "--json", **environ))}

    def lines(self) -> list[str]:
        """Return what `ls` shows to people."""
        return [" ".join(line.split()) for line in self("ls").splitlines()]

    def roles(self, **environ: str) -> dict[str, str]:
        """Return the role of each key, by id."""
        return {key_id: row["role"] for key_id, row in self.rows(**environ).items()}

    def refused(self, *words: str, **environ: str) -> str:
        """Run a command that has to fail, by one sentence; return it."""
        done = wasmkilnd("keys", *words, "--keys-dir", str(self.folder), **environ)
        assert (done.returncode, done.stdout) == (1, "")
        return sentence(done)


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line that a program wrote to standard error."""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_made_shown_and_replaced(keys: Keys) -> None:
    assert json.loads(keys("ls", "--json")) == keys.lines() == []
    assert not keys.folder.exists()
    before = os.umask(0)  # Whatever the umask is, the files are the owner's alone.
    try:
        said = keys("generate")
    finally:
        os.umask(before)
    first = keys.directory.pair()
    assert first.public.id in said
    assert keys.rows() == {
        first.public.id: {"id": first.public.id, "role": "signing", "key": first.public.hex}
    }
    assert f"{first.public.id} signing {first.public.hex}" in keys.lines()
    assert PublicKey.parse(keys("show", "--pem")) == first.public
    assert mode(keys.folder) == mode(keys.folder / "trusted") == 0o700
    files = [path for path in keys.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"signing.pem", f"{first.public.id}.pem"}
    assert {mode(path) for path in files} == {0o600}
    assert "keys rotate" in keys.refused("generate")
    said = keys("rotate")
    second = keys.directory.pair()
    assert keys.roles() == {first.public.id: "trusted", second.public.id: "signing"}
    assert mode(keys.folder / "signing.pem") == 0o600
    everything = b"".join(path.read_bytes() for path in keys.folder.rglob("*") if path.is_file())
    assert first.pem.splitlines()[1].encode() not in everything
    for secret in (first, second):
        assert secret.base64 not in said
        assert secret.pem.splitlines()[1] not in said


def test_a_rotation_goes_in_stages(keys: Keys) -> None:
    first = keys.directory.public
    assert "keys generate --next" in keys.refused("activate")
    assert "there is no such key in" in keys.refused("show", "--next")
    keys("generate", "--next")
    roles = keys.roles()
    [later] = roles.keys() - {first.id}
    assert roles == {first.id: "signing", later: "next"}
    public = PublicKey.parse(keys("show", "--next"))
    assert public.id == later
    assert mode(keys.folder / "next.pem") == 0o600
    assert "next.pem exists" in keys.refused("generate", "--next")
    assert "it is the next key" in keys.refused("distrust", later)
    for words in (("generate", "--next"), ("activate",)):
        told = keys.refused(*words, WASMKILN_SIGNING_KEY=keys.directory.pair().base64)
        assert "WASMKILN_SIGNING_KEY is set" in told
    keys("activate")
    assert keys.roles() == {first.id: "trusted", later: "signing"}
    assert not (keys.folder / "next.pem").exists()


def test_keys_are_trusted_distrusted_and_revoked(keys: Keys, tmp_path: Path) -> None:
    signing = keys.directory.public
    one, two, three = KeyPair().public, KeyPair().public, KeyPair().public
    (tmp_path / "two.pem").write_text(two.pem)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "three.pem").write_text(three.pem)
    keys("trust", one.hex, str(tmp_path / "two.pem"), str(tmp_path / "folder"))
    trusted = {file.stem for file in (keys.folder / "trusted").iterdir()}
    assert trusted == {signing.id, one.id, two.id, three.id}
    assert "64 hex digits" in keys.refused("trust", "nonsense")
    # By its id, whatever the file is called.
    bob = (keys.folder / "trusted" / f"{two.id}.pem").rename(keys.folder / "trusted" / "bob.pem")
    bob.write_text(two.pem + three.pem)
    assert "holds other keys too" in keys.refused("distrust", two.id)
    bob.write_text(two.pem)
    keys("distrust", one.id, two.id)
    assert one.id in keys.refused("distrust", one.id)
    assert "keys rotate" in keys.refused("distrust", signing.id)
    # A key that is not here can be revoked, too.
    keys("revoke", three.id, one.id)
    assert keys.directory.revoked() == {one.id, three.id}
    assert keys.roles() == {signing.id: "signing", three.id: "revoked", one.id: "revoked"}
    assert f"{three.id} revoked {three.hex}" in keys.lines()
    assert f"{one.id} revoked -" in keys.lines()
    assert "a key's id is 64 hex digits" in keys.refused("revoke", "nonsense")
    assert "signs with it" in keys.refused("revoke", signing.id)
    words = ("keys", "revoke", two.id, "--since", "2026-11-27", "--keys-dir", str(keys.folder))
    dated = wasmkilnd(*words)
    assert (dated.returncode, "No such option" in dated.stderr) == (2, True)
    assert two.id not in keys.directory.revoked()


def test_a_key_for_the_environment_is_printed_and_not_stored(keys: Keys) -> None:
    done = wasmkilnd("keys", "generate", "--print", "--keys-dir", str(keys.folder))
    assert done.returncode == 0
    assert not keys.folder.exists()
    environ = {"WASMKILN_SIGNING_KEY": done.stdout.strip()}
    other = KeyPair().public
    rows = keys.rows(**environ, WASMKILN_TRUSTED_KEYS=other.hex)
    [signing] = rows.keys() - {other.id}
    assert rows[signing]["role"] == "signing"
    assert rows[signing]["key"] in done.stderr
    told = keys.refused("rotate", **environ)
    assert "WASMKILN_SIGNING_KEY" in told
    assert done.stdout.strip() not in told
