"""The relay process, given whatever native libraries may write."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from wasmkilnd.telemetry.logs.relay import EVENT
from wasmkilnd.telemetry.logs.repeats import STANDARD_ERROR

GRPC = b"E0000 00:00:1764093000.123456   12345 chttp2_transport.cc:%d] no: %s\n"
LONGEST = 16 * 1024


def relayed(written: bytes, log_format: str = "json", level: str = "info") -> str:
    """Return what the relay writes when it reads ``written``."""
    boot = "from wasmkilnd.telemetry.logs.relay import main; import sys; main(*sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", boot, "token", log_format, level],
        input=written,
        capture_output=True,
        timeout=60,
        check=True,
    ).stderr.decode()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_is_a_line_of_the_log() -> None:
    got = lines(relayed(GRPC % (1, b"x") + b"W0000 warned\nI0000 told\n\nAborted\n no newline"))
    assert {line["event"] for line in got} == {EVENT}
    assert [line["level"] for line in got] == ["error", "warning", "info", "error", "error"]
    assert got[0]["text"].endswith("chttp2_transport.cc:1] no: x")
    assert got[-1]["text"] == "no newline"
    assert got[0]["timestamp"].endswith("Z")


def test_a_flood_is_counted_and_hides_no_other_place() -> None:
    flood = b"".join(GRPC % (1, b"%d" % number) for number in range(50_000))
    got = lines(relayed(flood + GRPC % (2, b"other") + b"Fatal Python error: Aborted\n"))
    assert len(got) == STANDARD_ERROR.lines + 3
    assert [line["left_out"] for line in got if "left_out" in line] == [
        50_000 - STANDARD_ERROR.lines - 1
    ]
    texts = "".join(line["text"] for line in got)
    assert "no: other" in texts
    assert "Fatal Python error: Aborted" in texts


@pytest.mark.parametrize("byte", [b"a", b"\0", b"\xff", b"\x1b"])
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_line_without_end_is_cut(byte: bytes, log_format: str) -> None:
    text = relayed(byte * 20_000_000 + b"\nlast\n", log_format)
    assert len(text) < (STANDARD_ERROR.lines + 3) * LONGEST
    assert max(map(len, text.splitlines())) < LONGEST
    assert "last" in text
    assert text.isprintable() or set(text) <= {"\n", *map(chr, range(32, 127)), "…"}


def test_secrets_are_masked_and_the_level_and_format_change() -> None:
    text = relayed(
        b"I0000 one\n\ntoken text error\nI0000 two\nto redis://bob:hunter2@h\n", "json", "info"
    )
    first, second = text.splitlines()
    assert json.loads(first)["text"] == "I0000 one"
    assert "hunter2" not in second
    assert EVENT in second
