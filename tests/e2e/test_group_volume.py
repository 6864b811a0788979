"""A volume that belongs to root and a group, as Kubernetes makes it for ``fsGroup``."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkiln.v1.types_pb2 import Origin

from tests.e2e import wasm
from tests.e2e.bearers import Metadata, bearer, token_command
from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, installed_engines, run, why_not_as
from tests.e2e.test_access import Stubs

USER, GROUP = 54321, 54322
"""Neither has a name, as in containers."""
BECOME = ("setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={GROUP}")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


def mount(folder: Path) -> None:
    """Set owners and modes of a volume as the kubelet does at each start of a pod."""
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    for path in folder.rglob("*"):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) or stat.S_ISSOCK(found.st_mode):
            continue
        os.lchown(path, -1, GROUP)
        more = 0o2770 if path.is_dir() else 0o660
        path.chmod(stat.S_IMODE(found.st_mode) | more)


@pytest.fixture(scope="module")
def volumes() -> Iterator[Path]:
    """A folder with a volume for the state, and one for the host store."""
    if why := why_not_as(USER):
        pytest.skip(f"another user cannot run the daemon: {why}")
    with tempfile.TemporaryDirectory(prefix="wasmkiln-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        for volume in ("state", "host"):
            (folder / volume).mkdir()
            mount(folder / volume)
        engines = folder / "state" / "engines"
        engines.mkdir(mode=0o700)
        [wasmtime] = [each for each in installed_engines() if "50.0" in each.id]
        assert run("cp", "-a", wasmtime.path, engines / wasmtime.id).returncode == 0
        assert run("chown", "-R", f"{USER}:{GROUP}", engines).returncode == 0
        yield folder


def daemon(
    volumes: Path, host_store: str = "host/artifacts", tokens_file: Path | None = None
) -> Daemon:
    command = ["env", "--unset=HOME", *BECOME, WASMKILND]
    flags = ["--host-store-dir", str(volumes / host_store)]
    flags += ["--tokens-file", str(tokens_file)] if tokens_file else []
    return Daemon(volumes / "state", flags, command=command)


def compiled(daemon: Daemon, number: int) -> int:
    with daemon.client(host_store_dir="none") as client:
        return int(client.compile(wasm.adder(number)).header.origin)


def is_private(folder: Path) -> bool:
    """Return whether only the service's user gets into a folder, and may write what is there."""
    inside = [path.lstat().st_mode for path in folder.rglob("*") if not path.is_symlink()]
    found = folder.stat()
    mine = found.st_uid == USER and not found.st_mode & 0o077
    return mine and not any(mode & 0o022 for mode in inside if not stat.S_ISSOCK(mode))


def test_the_daemon_makes_its_own_folders_in_it(volumes: Path) -> None:
    """Of a user without a name and a home."""
    with daemon(volumes) as one:
        assert "other users" not in one.log
        assert "cannot use" not in one.log
        assert "host store unusable" not in one.banner
        assert compiled(one, 1) == Origin.ORIGIN_COMPILED
        for private in ("keys", "redis"):
            assert is_private(volumes / "state" / private)


def test_it_starts_again_after_the_group_was_let_into_everything(volumes: Path) -> None:
    """The next start of the pod: keys, host store and the embedded server are used again."""
    for volume in ("state", "host"):
        mount(volumes / volume)
    keys = volumes / "state" / "keys"
    before = (keys / "signing.pem").read_bytes()
    assert keys.stat().st_mode & 0o020
    with daemon(volumes) as again:
        again.wait_for_log(f'"took the group\'s rights to private files", "folder": "{keys}"')
        assert is_private(keys)
        assert (keys / "signing.pem").read_bytes() == before
        # What the first daemon compiled is found on the host: nobody else could change it.
        assert compiled(again, 1) != Origin.ORIGIN_COMPILED
        assert "foreign" not in again.log


def test_the_tokens_of_a_secret_are_read_as_the_kubelet_replaces_it(volumes: Path) -> None:
    """It belongs to root and the group, and files are links to links that the kubelet renames."""
    made, secret = volumes / "made" / "tokens.json", volumes / "secret"
    secret.mkdir()
    os.chown(secret, 0, GROUP)
    secret.chmod(0o3777)

    def token(name: str) -> Metadata:
        """Make a token outside, and put it into the Secret."""
        words = ("--role", "read", "--tokens-file", str(made))
        text = token_command(volumes / "made", "add", name, *words)
        version = secret / f"..{name}"
        version.mkdir()
        content = version / "tokens.json"
        content.write_bytes(made.read_bytes())
        content.chmod(0o440)
        for path, mode in ((content, 0o440), (version, 0o2755)):
            os.chown(path, 0, GROUP)
            path.chmod(mode)
        (secret / "..new").symlink_to(version.name)
        (secret / "..new").rename(secret / "..data")
        return bearer(text)

    first, mounted = token("first"), secret / "tokens.json"
    mounted.symlink_to("..data/tokens.json")
    with (
        daemon(volumes, tokens_file=mounted) as one,
        Stubs(one.address) as stubs,
    ):
        assert stubs.capabilities() == "CREDENTIALS_MISSING"
        assert stubs.capabilities(first) == ""
        second = token("second")
        eventually(lambda: stubs.capabilities(second) == "", "the new version is not read")
    words = ("token", "revoke", "first", "--tokens-file", mounted)
    done = run(*BECOME, WASMKILND, *words, "--state-dir", volumes / "state")
    assert done.returncode == 1
    assert f"cannot change {mounted}: its folder is read-only for this user" in done.stderr


@pytest.mark.parametrize("command", ["keys ls", "config --listen 127.0.0.1:0"])
def test_commands_take_back_what_the_group_was_let_into(volumes: Path, command: str) -> None:
    """Before a daemon has started again: it need not start for that."""
    state = volumes / "state"
    mount(state)
    places = {"WASMKILN_STATE_DIR": str(state), "WASMKILN_ADMIN_LISTEN": "none"}
    done = run(*BECOME, WASMKILND, *command.split(), **places)
    assert done.returncode == 0, done.stderr
    assert f"note: took the group's rights to 5 private files: {state / 'keys'}" in done.stderr
    assert is_private(state / "keys")


def test_the_root_of_a_volume_is_no_host_store_and_the_message_names_one(volumes: Path) -> None:
    with daemon(volumes, "host") as one:
        refused = one.wait_for_log("cannot use the host store")
        assert f"use a folder in it, which the daemon makes: {volumes}/host/artifacts" in refused
