"""The command on a terminal, with evil file names, impossible options and servers that hang."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from wasmkiln.cli.app import Exit

from tests.lying import honest, lies
from tests.lying.server import LyingServer

EVIL_FILE = "\x1b]0;owned\x07\x1b[2J\u202egnp\n.wasm"
# What progress itself writes: it clears its line.
_OURS = re.compile(r"\r\x1b\[K")


@pytest.fixture
def run(invoke: Callable[..., Result]) -> Callable[..., Result]:
    """Run in a folder with a module."""
    Path("m.wasm").write_bytes(honest.WASM)
    return invoke


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("stats", "--watch", "--interval", "nan"),
        ("stats", "--watch", "--interval", "inf"),
        ("stats", "--watch", "--interval", "1e300"),
        ("stats", "--watch", "--interval", "-1"),
        ("stats", "--timeout", "nan"),
        ("stats", "--timeout", "inf"),
        ("drain", "--grace", "nan"),
        ("drain", "--grace", "inf"),
        ("compile", "m.wasm", "--max-artifact-bytes", "0"),
        ("compile", "m.wasm", "--max-artifact-bytes", "-5"),
        ("compile", "m.wasm", "--max-artifact-bytes", "many"),
        ("compile", "m.wasm", "--max-artifact-bytes", "9" * 5000),
    ],
)
def test_impossible_numbers_are_wrong_usage(
    run: Callable[..., Result], server: LyingServer, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments)
    assert result.exit_code == Exit.USAGE, result.output
    assert not server.calls


@pytest.mark.parametrize("name", ["WASMKILN_MAX_ARTIFACT_BYTES", "WASMKILN_TIMEOUT_S"])
def test_an_impossible_environment_is_named(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for value in ("many", "nan", "-1", "0"):
        monkeypatch.setenv(name, value)
        result = run("stats")
        assert result.exit_code == Exit.USAGE
        assert name in result.stderr


def test_a_timeout_beyond_what_grpc_counts_is_a_long_one(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "1e300")
    assert run("stats").exit_code == 0


def test_the_limit_on_artifacts_says_how_to_raise_it(run: Callable[..., Result]) -> None:
    result = run("compile", "m.wasm", "-o", "m.cwasm", "--max-artifact-bytes", "11KiB")
    assert result.exit_code == Exit.REFUSED
    assert result.stderr == (
        "error: m.wasm: the artifact has 12,000 bytes, above this client's limit of 11,264: raise "
        "max_artifact_bytes, --max-artifact-bytes or WASMKILN_MAX_ARTIFACT_BYTES\n"
    )
    assert not Path("m.cwasm").exists()
    for enough in ("12000", "11.71875KiB", "1gib"):
        assert (
            run("compile", "m.wasm", "-o", "m.cwasm", "--max-artifact-bytes", enough).exit_code == 0
        )


# --- evil file names ----------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False], ids=["a file", "no file"])
@pytest.mark.parametrize("command", ["load", "compile", "find-missing", "warm", "verify", "-o"])
def test_a_file_s_name_steers_no_terminal(
    run: Callable[..., Result], command: str, there: bool
) -> None:
    folder = Path(f"folder{EVIL_FILE}")
    name = str(folder / EVIL_FILE)
    if there:
        folder.mkdir()
        Path(name).write_bytes(honest.WASM)
    arguments = {
        "warm": ("warm", str(folder)),
        "verify": ("verify", name, "--key", "a" * 64),
        "-o": ("compile", "m.wasm", "-o", name),
    }.get(command, (command, name))
    for form in ((), ("--json",)):
        result = run(*arguments, *form)
        shown = result.stdout + result.stderr
        assert all(line.isprintable() for line in shown.splitlines()), shown
        assert "unexpected" not in shown
        for line in shown.splitlines():
            if line.startswith("{"):
                json.loads(line)


# --- a terminal -----------------------------------------------------------------------------------


def on_a_terminal(server: LyingServer, folder: Path, *arguments: str) -> tuple[str, int]:
    """What a command writes to a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", "from wasmkiln.cli import main; main()", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**os.environ, "WASMKILN_ADDRESS": server.address, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            if not select.select([ours], [], [], 60)[0]:
                running.kill()
                break
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        written += piece
        if not piece:
            break
    os.close(ours)
    return written.decode(errors="replace"), running.wait(30)


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        (("stats",), "Stats"),
        (("engines",), "GetCapabilities"),
        (("quarantine", "ls"), "ListQuarantine"),
        (("compile", "m.wasm", EVIL_FILE), "Compile"),
        (("load", EVIL_FILE), "Load"),
    ],
)
def test_nothing_but_progress_steers_a_terminal(
    run: Callable[..., Result],
    server: LyingServer,
    tmp_path: Path,
    arguments: tuple[str, ...],
    method: str,
) -> None:
    Path(EVIL_FILE).write_bytes(honest.WASM)
    lie = honest.ANSWERS[method].SerializeToString()
    for name, changed in lies.about(honest.ANSWERS[method]):
        if name in ("version #0", "target #0", "engine #0", "modules.0.message #0"):
            lie = changed.SerializeToString()
    server.answers[method] = honest.telling(method, lie)
    shown, code = on_a_terminal(server, tmp_path, *arguments)
    assert code == 0, shown
    left = _OURS.sub("", shown).replace("\r\n", "\n").replace("\r", "")
    assert "\\x1b" in left
    assert all(line.isprintable() for line in left.split("\n")), left


def test_a_terminal_without_unicode_is_no_defect(server: LyingServer, tmp_path: Path) -> None:
    server.answers.clear()
    done = subprocess.run(
        [sys.executable, "-c", "from wasmkiln.cli import main; main()", "engines"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "WASMKILN_ADDRESS": server.address, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"wasmtime-50.0.1" in done.stdout


# --- servers that hang -------------------------------------------------------------------------


@contextmanager
def silent_server(drip: bytes) -> Iterator[str]:
    """Accept connections, and send nothing, or one byte each 0.1 s."""
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        listener.settimeout(0.1)
        open_sockets: list[socket.socket] = []
        at = 0
        while not done.is_set():
            try:
                open_sockets.append(listener.accept()[0])
            except TimeoutError:
                for each in open_sockets:
                    try:
                        each.send(drip[at : at + 1])
                    except OSError:
                        continue
                at += 1
        for each in open_sockets:
            each.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


# An empty SETTINGS frame, after which a client may send; and then half of another frame.
_SETTINGS = bytes.fromhex("000000040000000000") + bytes.fromhex("00400000")


@pytest.mark.parametrize("drip", [b"", _SETTINGS * 1, b"HTTP/1.1 200 OK\r\n\r\n" * 9])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_server_that_says_nothing_ends_at_the_timeout(
    run: Callable[..., Result], drip: bytes, form: tuple[str, ...]
) -> None:
    with silent_server(drip) as address:
        start_s = time.monotonic()
        result = run("stats", "--address", address, "--timeout", "1", *form)
        assert time.monotonic() - start_s < 15
    assert result.exit_code in (Exit.DEADLINE, Exit.UNREACHABLE)
    assert result.stdout == ""
    assert result.stderr.startswith("error: no ")
