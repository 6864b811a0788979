"""Sizes, durations and counts as people write them."""

from __future__ import annotations

import pytest
from wasmkilnd.settings import parse_bytes, parse_count, parse_seconds, written


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (0, 0),
        ("7", 7),
        (" 64 MiB ", 64 * 2**20),
        ("1.5KiB", 1536),
        ("2KB", 2000),
        ("1gib", 2**30),
    ],
)
def test_a_size_is_bytes_or_has_a_suffix(text: object, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "1.1",
        "1 XB",
        "1e3",
        True,
        None,
        0.5,
        "9" * 5000,
        "٣",
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="256MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(30, 30), ("0.25", 0.25), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("7d", 604800)],
)
def test_a_duration_is_seconds_or_has_a_suffix(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5M", "-1s", False, float("inf"), float("nan"), "1w"])
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="500ms"):
        parse_seconds(text)


@pytest.mark.parametrize("text", ["", "two", True, "1.5", "4KiB", None])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_count(text)


def test_what_is_written_reads_back_exactly() -> None:
    for size_bytes in (0, 1, 1000, 1024, 5 * 2**20, 2**30 + 1, 2**30):
        assert parse_bytes(written("a_bytes", size_bytes)) == size_bytes
    for duration_s in (0, 0.5, 1.0, 30, 60, 90, 3600, 604800):
        assert parse_seconds(written("a_s", duration_s)) == duration_s
