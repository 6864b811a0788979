"""`wasmkilnd tls init`: what it makes, and whether the commands that it prints work as printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.programs import WASMKILND, search_path


def wasmkilnd(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [WASMKILND, *words], capture_output=True, text=True, timeout=60, check=False
    )


def printed(text: str) -> Mapping[str, list[str]]:
    """Return the commands, by what they are for."""
    found = re.findall(r"^(.+):\n  (.+)$", text, re.MULTILINE)
    return {what: shlex.split(line) for what, line in found}


@pytest.mark.parametrize("client", ["ci.example.org", "spiffe://example.org/builder/1"])
def test_the_commands_work_as_printed(lean_state_dir: Path, tmp_path: Path, client: str) -> None:
    folder = tmp_path / "my certificates"
    done = wasmkilnd("tls", "init", "--dir", str(folder), "--client", client)
    assert done.returncode == 0, done.stderr
    commands = printed(done.stdout)
    assert set(commands) == {"serve", "call"}
    program, verb, *flags = commands["serve"]
    assert (program, verb) == ("wasmkilnd", "serve")
    with Daemon(lean_state_dir, [*flags, "--redis-url", "none", "--workers", "1"]) as daemon:
        port = daemon.address.rpartition(":")[2]
        words = [each.replace(":50051", f":{port}") for each in commands["call"]]
        ran = subprocess.run(
            words,
            env={**os.environ, "PATH": search_path()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, f"{words} {ran.stdout} {ran.stderr}"
        assert "wasmtime" in ran.stdout or "wasmer" in ran.stdout


def test_keys_are_secret_and_nothing_is_overwritten(tmp_path: Path) -> None:
    assert wasmkilnd("tls", "init", "--dir", str(tmp_path / "x")).returncode == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    for name in ("ca", "server", "client"):
        assert (tmp_path / "x" / f"{name}.key").stat().st_mode & 0o777 == 0o600
    again = wasmkilnd("tls", "init", "--dir", str(tmp_path / "x"))
    assert again.returncode == 1
    assert again.stderr == f"error: cannot use {tmp_path}/x/ca.pem: File exists\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == made


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            ("--client", "no name"),
            "cannot make a certificate for 'no name': write a DNS name, an IP",
        ),
        (
            # The guard would call a certificate with this name malformed.
            ("--client", "spiffe://example.org/../x"),
            "cannot make a certificate for 'spiffe://example.org/../x': write a DNS name, an IP",
        ),
        (
            ("--host", "a/b"),
            "cannot make a certificate for 'a/b': write a DNS name, an IP",
        ),
    ],
)
def test_names_that_no_certificate_can_have(
    tmp_path: Path, flags: tuple[str, str], problem: str
) -> None:
    done = wasmkilnd("tls", "init", "--dir", str(tmp_path / "x"), *flags)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {problem}")
    assert not (tmp_path / "x").exists()
