"""Lines for systemd's journal carry their priority, and no others do."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator

import pytest
import structlog
from wasmkilnd.telemetry import logs


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a stream as systemd makes it, and names it."""
    ours, journal = socket.socketpair()
    with ours, journal:
        found = os.fstat(ours.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        yield ours, journal
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()


@pytest.mark.parametrize("log_format", ["auto", "json", "text"])
def test_each_line_begins_with_its_priority(
    stream: tuple[socket.socket, socket.socket], log_format: str
) -> None:
    ours, journal = stream
    with ours.makefile("w") as written:
        logs.configure(log_format, "debug", written)
        log = structlog.get_logger("wasmkilnd")
        log.debug("one")
        log.info("two")
        log.warning("three")
        log.error("four")
        logging.getLogger("library").warning("five")
        try:
            raise ValueError("six\nseven")
        except ValueError:
            log.exception("failed")
    lines = journal.recv(65536).decode().splitlines()
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<4>"]
    # A traceback as text has many lines, and each of them is an entry of the journal.
    assert {line[:3] for line in lines[5:]} == {"<3>"}
    if log_format != "text":
        assert [json.loads(line[3:])["level"] for line in lines][-1] == "error"


def test_a_stream_that_was_sent_elsewhere_gets_none(
    stream: tuple[socket.socket, socket.socket],
) -> None:
    other, reader = socket.socketpair()
    with other, reader, other.makefile("w") as written:
        logs.configure("json", "info", written)
        structlog.get_logger("wasmkilnd").info("one")
        assert reader.recv(4096).startswith(b'{"timestamp"')
