"""`wasmkilnd tls init`: what it makes, and whether the commands that it prints work as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cryptography import x509

from tests.e2e.daemon import Daemon
from tests.e2e.programs import run, search_path
from tests.e2e.test_daemon import wasmkilnd


def test_the_commands_work_as_printed(lean_state_dir: Path, tmp_path: Path) -> None:
    folder, client = tmp_path / "my certificates", "spiffe://example.org/builder/1"
    done = wasmkilnd("tls", "init", "--dir", str(folder), "--client", client)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(.+):\n  (.+)$", done.stdout, re.MULTILINE)
    commands = {what: shlex.split(line) for what, line in found}
    assert set(commands) == {"serve", "call"}
    program, verb, *flags = commands["serve"]
    assert (program, verb) == ("wasmkilnd", "serve")
    with Daemon(lean_state_dir, [*flags, "--redis-url", "none", "--workers", "1"]) as daemon:
        port = daemon.address.rpartition(":")[2]
        words = [each.replace(":50051", f":{port}") for each in commands["call"]]
        ran = run(*words, PATH=search_path())
        assert ran.returncode == 0, f"{words} {ran.stdout} {ran.stderr}"
        assert "wasmtime" in ran.stdout or "wasmer" in ran.stdout


def test_keys_are_secret_and_nothing_is_overwritten(tmp_path: Path) -> None:
    words = ("tls", "init", "--dir", str(tmp_path / "x"), "--client", "ci.example.org")
    assert wasmkilnd(*words).returncode == 0
    client = x509.load_pem_x509_certificate((tmp_path / "x" / "client.pem").read_bytes())
    named = client.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert named.get_values_for_type(x509.DNSName) == ["ci.example.org"]
    made = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    for name in ("ca", "server", "client"):
        assert (tmp_path / "x" / f"{name}.key").stat().st_mode & 0o777 == 0o600
    again = wasmkilnd("tls", "init", "--dir", str(tmp_path / "x"))
    assert again.returncode == 1
    assert again.stderr == f"error: cannot use {tmp_path}/x/ca.pem: File exists\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == made


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--client", "no name"),
        # The guard would call a certificate with this name malformed.
        ("--client", "spiffe://example.org/../x"),
        ("--host", "a/b"),
    ],
)
def test_names_that_no_certificate_can_have(tmp_path: Path, flag: str, name: str) -> None:
    done = wasmkilnd("tls", "init", "--dir", str(tmp_path / "x"), flag, name)
    assert done.returncode == 1
    told = f"error: cannot make a certificate for '{name}': write a DNS name, an IP"
    assert done.stderr.startswith(told)
    assert not (tmp_path / "x").exists()
