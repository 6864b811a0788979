"""Run what differs between Pythons, on each that can be had: `make test-pythons`.

Python 3.10 has the client alone, which is imported and used. Newer ones run unit tests of the parts
that lean on the version: asyncio, signals, processes, typing, TLS, sockets. uv makes the
environments; where a Python is not on PATH or pyenv's, it may fetch one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin
from wasmkilnd.engines.install import find_python

ROOT = Path(__file__).resolve().parents[1]
OLDEST = """
import asyncio, subprocess, sys, wasmkiln
from tests.unit.client.fake_daemon import fake_daemon
MODULE = bytes.fromhex("0061736d01000000")
async def use(address):
    async with wasmkiln.AsyncClient(address) as client:
        return (await client.compile(MODULE)).bytes
with fake_daemon() as daemon:
    with wasmkiln.Client(daemon.address) as client:
        assert client.compile(MODULE).bytes == asyncio.run(use(daemon.address)) == daemon.artifact
    command = [sys.executable, "-c", "from wasmkiln.cli import main; main()", "stats", "--address"]
    subprocess.run([*command, daemon.address], check=True)
print("the client works")
"""
TESTS = "client/test_clients.py client/test_cli.py client/test_errors.py client/test_tls.py config"
TESTS += " test_compile.py test_flights.py test_ownership.py test_watch.py"


def run(minor: int) -> str:
    """Run the tests of one Python; return what became of them."""
    found = find_python(range(minor, minor + 1), Path(os.devnull))
    ours, packages, what = ".[cli,verify,zstd]", "grpcio-health-checking", ["-c", OLDEST]
    if minor > 10:
        ours, packages = ".[server]", "hypothesis pytest pytest-asyncio pytest-timeout"
        what = ["-m", "pytest", "-q", *(f"tests/unit/{name}" for name in TESTS.split())]
    uv = [find_uv_bin(), "run", "--quiet", "--no-project", "--isolated", "--with-editable", ours]
    uv += [word for package in packages.split() for word in ("--with", package)]
    python = [*uv, "--python", str(found.path) if found else f"3.{minor}", "python"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "UV_CONSTRAINT": "requirements/dev.txt"}
    print(f"--- Python 3.{minor}", flush=True)
    if subprocess.run([*python, "-V"], cwd=ROOT, env=environ, check=False).returncode:
        return "could not be had"
    done = subprocess.run([*python, *what], cwd=ROOT, env=environ, check=False)
    return "failed" if done.returncode else "passed"


if __name__ == "__main__":
    results = {f"3.{minor}": run(minor) for minor in range(10, 15)}
    print(*(f"Python {version}: {result}" for version, result in results.items()), sep="\n")
    sys.exit("failed" in results.values())
