"""`wasmkilnd config` finds what `serve` would not start with, and says it in the same words."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e import programs
from tests.e2e.programs import WASMKILND
from tests.e2e.signing_keys import KeyDirectory, KeyPair

QUIET = ("--redis-url", "none", "--listen", "127.0.0.1:0", "--admin-listen", "none")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with an engine that no test gets as far as to start."""
    engine = tmp_path / "state" / "engines" / "wasmtime-50.0.1"
    engine.mkdir(parents=True)
    marker = {"name": "wasmtime", "version": "50.0.1", "python": "CPython 3.11.1"}
    (engine / "engine.json").write_text(json.dumps(marker))
    return tmp_path / "state"


def run(command: str, state: Path, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return programs.run(WASMKILND, command, "--state-dir", state, *QUIET, *flags, **environ)


def test_what_is_right_is_shown_and_makes_nothing(state: Path) -> None:
    before = sorted(state.rglob("*"))
    done = run("config", state, "--default-engine", "wasmtime")
    assert done.returncode == 0, done.stderr
    assert 'default_engine = "wasmtime"' in done.stdout
    assert sorted(state.rglob("*")) == before
    done = run("config", state / "none" / "state")
    assert done.returncode == 0, done.stderr
    assert sorted(state.rglob("*")) == before


SECRET = "secret-nonsense"
OTEL = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "x"}
# By what cannot be used: flags, variables, and how the sentence begins. {tmp} is a folder.
UNUSABLE: dict[str, tuple[str, dict[str, str], str]] = {
    "state directory": (
        "--state-dir {tmp}/open.json/x",
        {},
        "cannot make the state directory {tmp}/open.json/x: File exists; choose another",
    ),
    "signing key": ("", {"WASMKILN_SIGNING_KEY": SECRET}, "WASMKILN_SIGNING_KEY: "),
    "default engine": ("--default-engine wasmtime-49.0.0", {}, "WASMKILN_DEFAULT_ENGINE: "),
    "alias": (
        "--engine-alias wasmtime=wasmtime-49.0.0",
        {},
        "engine_alias: wasmtime stands for wasmtime-49.0.0, which is not installed; installed are:"
        " wasmtime-50.0.1",
    ),
    "audit": ("--audit-file {tmp}/none/x", {}, "cannot write the audit to {tmp}/none/x: "),
    "trusted keys": ("--trusted-keys {tmp}/none", {}, "WASMKILN_TRUSTED_KEYS: "),
    "a key that is revoked": ("--keys-dir {tmp}/revoked", {}, "cannot sign with "),
    # Also where it would sign with another one.
    "keys that others can add": (
        "--keys-dir {tmp}/open",
        {"WASMKILN_SIGNING_KEY": KeyPair().base64},
        "cannot use {tmp}/open: other users may write to it",
    ),
    "collector": ("", OTEL, "cannot send traces: one of the variables OTEL_*: "),
    "policy": ("--policy-file {tmp}/none", {}, "cannot use policy {tmp}/none: there is no such"),
    "tokens": (
        "--tokens-file {tmp}/none",
        {},
        "cannot use tokens file {tmp}/none: there is no such file; put it there, or make its first"
        " token with `wasmkilnd token add`",
    ),
    "tokens that others may read": (
        "--tokens-file {tmp}/open.json",
        {},
        "cannot use {tmp}/open.json: other users may read it; `chmod o= {tmp}/open.json`",
    ),
    "namespaces": (
        "--policy-file {tmp}/crowded.toml",
        {},
        "cannot serve the namespaces of policy and tokens: ",
    ),
    "TLS": (
        "--tls-cert-file {tmp}/none --tls-key-file {tmp}/none",
        {},
        "cannot use tls_cert_file {tmp}/none: there is no such file",
    ),
    "advisories": ("--advisories-file {tmp}/none", {}, "cannot use advisories_file {tmp}/none: "),
}


@pytest.mark.parametrize(("flags", "environ", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_both_say_the_same_before_any_engine_starts(
    state: Path, tmp_path: Path, flags: str, environ: dict[str, str], says: str
) -> None:
    rules = [f'[[rule]]\nidentity = "token:a{at}"\nnamespace = "n{at}"\n' for at in range(257)]
    (tmp_path / "crowded.toml").write_text("".join(rules))
    (tmp_path / "open.json").write_text('{"version": 1, "tokens": []}')
    (tmp_path / "open.json").chmod(0o644)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o707)
    revoked = KeyDirectory(tmp_path / "revoked")
    revoked.revoke_since(revoked.public.id, 4_102_444_800_000)  # A date has no meaning any more.
    words = flags.format(tmp=tmp_path).split()
    checked = run("config", state, *words, **environ)
    assert checked.returncode == 2
    [sentence] = checked.stderr.splitlines()
    assert sentence.startswith(f"error: {says.format(tmp=tmp_path)}")
    assert environ.get("WASMKILN_SIGNING_KEY", SECRET) not in sentence
    assert checked.stdout == ""
    served = run("serve", state, *words, **environ)
    assert served.returncode == 1
    assert served.stderr.splitlines()[-1] == sentence
    assert "wasmtime worker" not in served.stderr


NO_SETTINGS = {"WASMKILN_MEMORY_BITES": "1", "WASMKILN_COMPILE_TIMEOUT_S": "soon"}


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ("--workers -1", NO_SETTINGS, [*NO_SETTINGS, "WASMKILN_MEMORY_BYTES", "soon", "workers"]),
        ("--listen 0.0.0.0:1", {}, ["allow"]),
        ("--redis-url http://x", {}, ["redis"]),
        ("--config /nothing.toml", {}, ["/nothing.toml"]),
    ],
)
def test_what_is_no_setting_is_refused_by_both(
    state: Path, flags: str, environ: dict[str, str], words: list[str]
) -> None:
    for command in ("config", "serve"):
        done = run(command, state, *flags.split(), **environ)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert all(word in done.stderr for word in words)


GONE = ("--trace-endpoint", "http://h", "--no-open-health")


def test_an_upgrade_is_told_of_all_settings_then_of_all_the_policy(
    state: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[quota.q]\ncalls = 1\nqueue_share = 0.5\n")
    file = tmp_path / "x.toml"
    file.write_text("queue_bytes = 1\njwt_issuer = 'i'\n")
    variables = {"WASMKILN_BANNER": "always", "WASMKILN_TOKEN_OVER_PLAINTEXT": "1"}
    done = run("config", state, "--config", str(file), *GONE, **variables)
    assert done.returncode == 2
    told = [line.partition("error: ")[2] or line for line in done.stderr.splitlines()]
    assert [line.partition(": ")[0] for line in told] == [
        f"queue_bytes in file {file} is no longer a setting",
        f"jwt_issuer in file {file} is no longer a setting",
        "WASMKILN_BANNER in the environment is no longer a setting",
        "open_health in the command line is no longer a setting",
        "trace_endpoint in the command line is no longer a setting",
    ]
    told = run("config", state, "--policy-file", str(policy)).stderr.splitlines()
    named = [line.removeprefix("error: ").partition(": ")[0] for line in told]
    assert named == [f"cannot use policy {policy}"] * 2


def test_what_serve_meets_after_its_engines_is_found_too(state: Path, tmp_path: Path) -> None:
    password = ("--redis-url", "redis://127.0.0.1:1", "--redis-password-file", f"{tmp_path}/none")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        for flags, says in (
            (password, f"{tmp_path}/none"),
            (("--listen", port), f"cannot listen on {port}: it is in use"),
            (("--admin-listen", port), f"on {port}"),
            (("--listen", f"unix:{tmp_path}/none/socket"), f"{tmp_path}/none is not a directory"),
        ):
            done = run("config", state, *flags)
            assert done.returncode == 2, done.stdout
            assert says in done.stderr
            assert "Traceback" not in done.stderr


def test_rights_in_the_object_store_are_proved(state: Path, tmp_path: Path) -> None:
    """A directory in which a stranger's folder stands, and one that is not there."""
    store = tmp_path / "objects"
    store.mkdir()
    flags = ("--object-store-url", f"file://{store}")
    assert run("config", state, *flags).returncode == 0
    assert not [path for path in store.rglob("*") if path.is_file()]
    [folder] = store.glob("wasm/3/compiled")
    folder.rmdir()
    folder.symlink_to(tmp_path)  # Root may write anywhere else.
    done = run("config", state, *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: object_store_url: cannot write an object: ")
    assert run("config", state, *flags, "--object-store-mode", "read-only").returncode == 2
    done = run("config", state, "--object-store-url", f"file://{tmp_path}/none")
    assert done.returncode == 2
    assert "there is no such directory" in done.stderr
    assert "Traceback" not in done.stderr
