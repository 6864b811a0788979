"""A command imports what it needs, and the daemon's own imports come after its settings."""

from __future__ import annotations

import json
import subprocess
import sys

# Each takes a tenth of a second to import, or more.
DEAR = {"aiohttp", "cryptography", "grpc", "jwt", "redis", "rich", "structlog", "google.protobuf"}
TELL = "import json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"


def imported_by(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{TELL}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_the_command_imports_little() -> None:
    assert not DEAR & imported_by("import wasmkilnd.cli")


def test_settings_are_read_before_grpc_is_there() -> None:
    """gRPC looks once, at its import, which versions of TLS it may speak."""
    program = """
import os, sys
from wasmkilnd.cli import command
sys.modules["wasmkilnd.app"] = None
words = "serve --tls-cert-file x --tls-key-file y --tls-min-version 1.3 --listen 127.0.0.1:0"
try:
    command(words.split(), standalone_mode=False)
except ImportError:
    assert "PSK" in os.environ["GRPC_SSL_CIPHER_SUITES"]
else:
    raise AssertionError("it did not import what runs")
"""
    assert not DEAR & imported_by(program)
