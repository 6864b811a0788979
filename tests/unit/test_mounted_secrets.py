"""Keys, tokens and the policy as Kubernetes mounts a Secret: for root, and a group that reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmkilnd.access.tokens import as_file, new_token, read_tokens
from wasmkilnd.files.operator_files import CannotUse
from wasmkilnd.model import Role
from wasmkilnd.settings_loader import load
from wasmkilnd.signing.keys import Keys, KeysUnusable, PrivateKey, read_keys

USER, GROUP = 54321, 54322
KEY = PrivateKey.generate()


def keys_in(folder: Path, signing_key: str = "") -> Keys:
    """Return the keys that a daemon with this directory, and this setting, uses."""
    environ = {"WASMKILN_SIGNING_KEY": signing_key} if signing_key else {}
    return read_keys(load({"keys_dir": str(folder)}, environ).settings)


TOKEN = new_token("ci", [Role.COMPILE], "", 0, None)[1]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to root")


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes, int], Path]:
    """A function that mounts a file for a daemon that is another user, of the volume's group."""

    def mount(name: str, content: bytes, mode: int) -> Path:
        folder = tmp_path / "secret"
        data = folder / "..2026_11_28"
        data.mkdir(parents=True)
        (data / name).write_bytes(content)
        os.chown(data / name, 0, GROUP)
        (data / name).chmod(mode)
        (folder / name).symlink_to(f"..data/{name}")
        (folder / "..data").symlink_to(data.name)
        for each, folder_mode in ((data, 0o2755), (folder, 0o3777)):
            os.chown(each, 0, GROUP)
            each.chmod(folder_mode)
        monkeypatch.setattr(os, "geteuid", lambda: USER)
        return folder / name

    return mount


Mount = Callable[[str, bytes, int], Path]


def test_a_tokens_file_is_used(mounted: Mount) -> None:
    found = read_tokens(mounted("tokens.json", as_file([TOKEN]), 0o440))
    assert found
    assert [each.id for each in found.all] == [TOKEN.id]


def test_a_tokens_file_that_all_may_read_is_refused_with_what_kubernetes_needs(
    mounted: Mount,
) -> None:
    """0644 is what Kubernetes makes where nobody says otherwise; the daemon cannot change it."""
    path = mounted("tokens.json", as_file([TOKEN]), 0o644)
    with pytest.raises(CannotUse, match=r"other users may read it.*`defaultMode: 0440`"):
        read_tokens(path)


def test_a_signing_key_alone_in_a_folder_is_used(mounted: Mount, tmp_path: Path) -> None:
    """By a link to where the Secret is mounted."""
    key = mounted("signing.pem", KEY.pem, 0o440)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o750)
    (keys / "signing.pem").symlink_to(key)
    assert keys_in(keys).own_id == KEY.public.id


def test_a_mounted_secret_is_no_directory_of_keys_and_the_message_says_what_is(
    mounted: Mount, tmp_path: Path
) -> None:
    """Whoever may write to its folder could add keys that are trusted."""
    folder = mounted("signing.pem", KEY.pem, 0o440).parent
    remedy = "leave keys_dir out, and hand over its key in WASMKILN_SIGNING_KEY"
    with pytest.raises(KeysUnusable, match=f"as to a mounted Secret; {remedy}"):
        keys_in(folder)
    assert keys_in(tmp_path / "own", KEY.base64).own_id == KEY.public.id
