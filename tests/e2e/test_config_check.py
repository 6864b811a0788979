"""`wasmkilnd config` finds what `serve` would not start with, and says it in the same words."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e import programs
from tests.e2e.programs import WASMKILND

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


@pytest.mark.parametrize(
    ("flags", "environ", "says"),
    [
        ((), {"WASMKILN_SIGNING_KEY": "secret-nonsense"}, "WASMKILN_SIGNING_KEY: "),
        (("--default-engine", "wasmtime-49.0.0"), {}, "WASMKILN_DEFAULT_ENGINE: "),
        (("--engine-alias", "wasmtime=wasmtime-49.0.0"), {}, "engine_alias: wasmtime stands for"),
        (("--audit-file", "{tmp}/none/audit"), {}, "cannot write the audit to {tmp}/none/audit"),
        (("--trusted-keys", "{tmp}/none"), {}, "WASMKILN_TRUSTED_KEYS: "),
        (
            (),
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "x"},
            "cannot send traces: one of the variables OTEL_*: ",
        ),
    ],
    ids=["signing key", "default engine", "alias", "audit", "trusted keys", "collector"],
)
def test_both_say_the_same_before_any_engine_starts(
    state: Path, tmp_path: Path, flags: tuple[str, ...], environ: dict[str, str], says: str
) -> None:
    flags = tuple(each.format(tmp=tmp_path) for each in flags)
    checked = run("config", state, *flags, **environ)
    assert checked.returncode == 2
    [sentence] = checked.stderr.splitlines()
    assert sentence.startswith(f"error: {says.format(tmp=tmp_path)}")
    assert "secret-nonsense" not in sentence
    assert checked.stdout == ""
    served = run("serve", state, *flags, **environ)
    assert served.returncode == 1
    assert served.stderr.splitlines()[-1] == sentence
    assert "wasmtime worker" not in served.stderr


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ((), {"WASMKILN_MEMORY_BITES": "1"}, ["WASMKILN_MEMORY_BITES", "WASMKILN_MEMORY_BYTES"]),
        (("--workers", "-1"), {}, ["workers"]),
        ((), {"WASMKILN_COMPILE_TIMEOUT_S": "soon"}, ["WASMKILN_COMPILE_TIMEOUT_S", "soon"]),
        (("--listen", "0.0.0.0:1"), {}, ["allow"]),
        (("--redis-url", "http://x"), {}, ["redis"]),
        (("--config", "/nothing.toml"), {}, ["/nothing.toml"]),
    ],
)
def test_what_is_no_setting_is_refused_by_both(
    state: Path, flags: tuple[str, ...], environ: dict[str, str], words: list[str]
) -> None:
    for command in ("config", "serve"):
        done = run(command, state, *flags, **environ)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert all(word in done.stderr for word in words)


GONE = ("--trace-endpoint", "http://h", "--no-open-health")


def test_an_upgrade_is_told_all_that_it_takes_at_once(state: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[quota.q]\ncalls = 1\nqueue_share = 0.5\n")
    file = tmp_path / "x.toml"
    file.write_text(f"queue_bytes = 1\njwt_issuer = 'i'\npolicy_file = '{policy}'\n")
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
        *[f"cannot use policy {policy}"] * 2,
    ]


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
