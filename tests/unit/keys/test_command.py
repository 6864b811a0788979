"""`wasmkilnd keys`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from wasmkiln.attestation import PublicKey
from wasmkilnd.cli import command
from wasmkilnd.settings_loader import load
from wasmkilnd.signing.keys import KeyStore, KeysUnusable, PrivateKey, open_keys


class Command:
    """Runs it on one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ: dict[str, str] = {}

    def __call__(self, *arguments: str) -> Result:
        where = ["--keys-dir", str(self.folder)]
        result = CliRunner().invoke(
            command, ["keys", *arguments, *where], env=self.environ, standalone_mode=False
        )
        if result.exception:
            raise result.exception
        return result

    def rows(self) -> Any:
        return json.loads(self("ls", "--json").stdout)


@pytest.fixture
def keys(tmp_path: Path) -> Command:
    return Command(tmp_path / "keys")


def test_generate_list_rotate(keys: Command) -> None:
    assert "`wasmkilnd serve` makes one" in keys("ls").stderr
    assert not keys.folder.exists()
    keys("generate")
    [first] = keys.rows()
    assert first["role"] == "signing"
    assert PublicKey.parse(first["key"]).id == first["id"]
    keys("rotate")
    roles = {row["id"]: row["role"] for row in keys.rows()}
    assert len(roles) == 2
    assert roles[first["id"]] == "trusted"
    assert f"{first['id']}  trusted  {first['key']}" in keys("ls").stdout


def test_trust(keys: Command, tmp_path: Path) -> None:
    one, two = PrivateKey.generate().public, PrivateKey.generate().public
    (tmp_path / "two.pem").write_text(two.pem)
    keys("trust", one.hex, str(tmp_path / "two.pem"))
    assert {row["id"] for row in keys.rows()} == {one.id, two.id}
    with pytest.raises(KeysUnusable, match="a trusted key is"):
        keys("trust", "nonsense")


def test_print_stores_nothing_and_says_the_public_half_apart(keys: Command) -> None:
    result = keys("generate", "--print")
    key = PrivateKey.parse(result.stdout)
    assert key.public.hex in result.stderr
    assert not keys.folder.exists()
    keys.environ = {"WASMKILN_SIGNING_KEY": result.stdout.strip()}
    [row] = keys.rows()
    assert row == {"id": key.public.id, "role": "signing", "key": key.public.hex}
    with pytest.raises(KeysUnusable, match="cannot rotate: WASMKILN_SIGNING_KEY is set"):
        keys("rotate")


def test_the_state_directory_decides_where_no_other_is_named(tmp_path: Path) -> None:
    arguments = ["keys", "generate", "--state-dir", str(tmp_path)]
    assert CliRunner().invoke(command, arguments, standalone_mode=False).exit_code == 0
    assert KeyStore(tmp_path / "keys").signing_key() is not None


def test_no_command_shows_a_private_key_unasked(keys: Command) -> None:
    keys("generate")
    key = KeyStore(keys.folder).ensure()
    told = keys("ls").output + keys("ls", "--json").output + keys("rotate").output
    assert key.base64 not in told
    assert "PRIVATE" not in told


def test_distrust(keys: Command) -> None:
    keys("generate")
    other = PrivateKey.generate()
    keys("trust", other.public.hex)
    assert "forget it on SIGHUP" in keys("distrust", other.public.id).stdout
    [signing] = keys.rows()
    for key_id, words in ((other.public.id, "is not the id of a key"), (signing["id"], "rotate")):
        with pytest.raises(KeysUnusable, match=words):
            keys("distrust", key_id)
    keys("rotate")
    keys("distrust", signing["id"])
    assert [row["role"] for row in keys.rows()] == ["signing"]


def test_distrust_finds_a_key_whatever_its_file_is_called(keys: Command) -> None:
    keys("generate")
    alice, bob = PrivateKey.generate().public, PrivateKey.generate().public
    trusted = keys.folder / "trusted"
    (trusted / "alice.pem").write_text(alice.pem)
    keys("distrust", alice.id)
    assert not (trusted / "alice.pem").exists()
    (trusted / "both.pem").write_text(alice.pem + bob.pem)
    with pytest.raises(KeysUnusable, match="holds other keys too"):
        keys("distrust", alice.id)
    assert {alice.id, bob.id} < {row["id"] for row in keys.rows()}


def test_revoke(keys: Command) -> None:
    keys("generate")
    other = PrivateKey.generate().public
    keys("trust", other.hex)
    for _ in range(2):
        assert f"key {other.id} is revoked; " in keys("revoke", other.id).stdout
    [signing] = [row for row in keys.rows() if row["role"] == "signing"]
    [revoked] = [row for row in keys.rows() if row["role"] == "trusted"]
    assert revoked["revoked"] == "altogether"
    assert f"{other.hex}  altogether\n" in keys("ls").stdout
    for arguments, words in (
        ((signing["id"],), "this daemon signs with it"),
        (("nonsense",), "a key's id is 64 hex digits"),
    ):
        with pytest.raises(KeysUnusable, match=words):
            keys("revoke", *arguments)


def test_a_daemon_does_not_sign_with_a_revoked_key(keys: Command) -> None:
    keys("generate")
    [signing] = keys.rows()
    KeyStore(keys.folder).revoke(signing["id"])
    settings = load({"keys_dir": str(keys.folder)}, {}).settings
    with pytest.raises(KeysUnusable, match="this key is revoked"):
        open_keys(settings)
    keys("rotate")
    assert open_keys(settings).own_id != signing["id"]


def test_staged_rotation(keys: Command) -> None:
    keys("generate")
    [first] = keys.rows()
    for words in ("activate", "show --next"):
        with pytest.raises(KeysUnusable, match="generate --next"):
            keys(*words.split())
    said = keys("generate", "--next").stdout
    roles = {row["role"]: row for row in keys.rows()}
    assert set(roles) == {"signing", "next"}
    assert roles["signing"] == first
    public = roles["next"]["key"]
    assert f"wasmkilnd keys trust {public}" in said
    assert keys("show", "--next").stdout == f"{public}\n"
    assert PublicKey.parse(keys("show", "--next", "--pem").stdout).hex == public
    assert keys("show").stdout == f"{first['key']}\n"
    with pytest.raises(KeysUnusable, match="exists"):
        keys("generate", "--next")
    with pytest.raises(KeysUnusable, match="it is the next key"):
        keys("distrust", roles["next"]["id"])
    keys("activate")
    roles = {row["role"]: row for row in keys.rows()}
    assert set(roles) == {"signing", "trusted"}
    assert (roles["signing"]["key"], roles["trusted"]["id"]) == (public, first["id"])
    assert not (keys.folder / "next.pem").exists()
    assert ((keys.folder / "signing.pem").stat().st_mode & 0o777) == 0o600
    key = KeyStore(keys.folder).ensure()
    assert key.base64 not in said
    keys.environ = {"WASMKILN_SIGNING_KEY": key.base64}
    for words in ("generate --next", "activate"):
        with pytest.raises(KeysUnusable, match="WASMKILN_SIGNING_KEY is set"):
            keys(*words.split())
