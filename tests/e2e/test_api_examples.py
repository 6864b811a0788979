"""Each example with grpcurl on the pages of the API does what the page says, on one daemon."""

from __future__ import annotations

import base64
import os
import re
import time
from pathlib import Path

from tests.e2e.console import Command, Shell, sessions
from tests.e2e.daemon import Daemon
from tests.e2e.programs import ROOT, search_path

# In an order in which each finds what it needs; the last one ends the daemon.
PAGES = (
    "reference/api",
    "reference/module-service",
    "reference/compile",
    "how-to/warm",
    "reference/errors",
    "reference/admin-service",
)
ADDRESS = "127.0.0.1:50051"
_FIELD = re.compile(r'"(\w+)":')
# Values that are the same on each machine: of enumerations, and the ids of engines.
_VALUE = re.compile(r'"([A-Z]+_[A-Z_]+|wasm[a-z]+-[0-9.]+)"')
# Zero, and so left out, while nobody else calls.
_UNDER_LOAD = {"calls", "flights"}
_SOON_S = 60.0


def examples() -> list[Command]:
    """Return the commands of the pages, without those that no test runs."""
    texts = [(ROOT / "docs" / f"{page}.md").read_text() for page in PAGES]
    return [command for text in texts for session in sessions(text) for command in session]


def module() -> bytes:
    """Return the module of the examples."""
    [text] = re.findall(
        r"^export MODULE=(\S+)$", "\n".join(each.text for each in examples()), re.MULTILINE
    )
    return base64.b64decode(text)


def as_told(command: Command, printed: str) -> bool:
    """Return whether it printed what the page shows: fields, constant values; else each word."""
    told = set(_FIELD.findall(command.printed))
    if told:
        values = set(_VALUE.findall(command.printed))
        fields_are_there = told - _UNDER_LOAD <= set(_FIELD.findall(printed))
        return fields_are_there and values <= set(_VALUE.findall(printed))
    if "ERROR:" in command.printed:
        return all(word in printed for word in ("Code: NotFound", "MODULE_NOT_LOADED"))
    words = command.printed.split()
    return not words or set(words) == set(printed.split())


def test_the_examples_of_the_api(state_dir: Path, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "PATH": search_path(),
    }
    shell = Shell(tmp_path, environ)
    with Daemon(state_dir) as daemon:
        with daemon.client() as client:
            # A miss and a hit, which Stats shows.
            for _ in range(2):
                client.compile(module(), engine="wasmtime")
        for command in examples():
            text = command.text.replace(ADDRESS, daemon.address)
            until = time.monotonic() + _SOON_S
            while True:
                make_ready(daemon, command)
                printed = shell.run(text)
                if as_told(command, printed):
                    break
                assert time.monotonic() < until, f"$ {text}\n{printed}\n--- not\n{command.printed}"
                time.sleep(0.2)
        assert daemon.process.wait(60) == 0


def make_ready(daemon: Daemon, command: Command) -> None:
    """Have the daemon answer from the tier that the page says."""
    with daemon.client() as client:
        if "ORIGIN_COMPILED" in command.printed:
            client.evict(engine="wasmtime-50.0.1")
        if "AdminService/Pin" in command.text:
            client.compile(module(), engine="wasmtime")
            client.load(module(), engine="wasmtime")  # Memory may have the artifact alone.
        if "ORIGIN_REDIS" in command.printed:
            client.evict(all=True, tier="memory")
            client.evict(all=True, tier="host_store")
