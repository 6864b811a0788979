"""Pins as they are kept: lists of digests with their times, which daemons merge.

A list says of each module when it was pinned and unpinned last. Whoever merges two takes the
later of each time, so nothing is lost however often a list is written, deleted or replaced by an
older one. An unpinned module stays in the list, or another daemon would pin it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from wasmkilnd.cache.value.format import CheckStamp, Stamp
from wasmkilnd.model import SHA256_HEX, STAMP_BYTES, PinTimes

MAX_LIST_BYTES = 2 * 1024 * 1024
"""The most bytes of a stored list."""

# The year 10000, where protobuf's times end.
_MAX_MS = 253_402_300_800_000
# Part of what a stamp signs, so that no signature for another purpose passes for one.
_PURPOSE = b"wasmkiln pins\0"


def write_list(times: Mapping[str, PinTimes]) -> bytes:
    """Return a list as text."""
    pins = {module: [*each] for module, each in sorted(times.items())}
    return json.dumps({"pins": pins}, separators=(",", ":")).encode()


def read_list(text: bytes) -> dict[str, PinTimes]:
    """Return what a list says; nothing of what is malformed. Ignores unknown fields."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    pins = said.get("pins") if isinstance(said, dict) else None
    if not isinstance(pins, dict):
        return {}
    return {
        module: PinTimes(each[0], each[1])
        for module, each in pins.items()
        if SHA256_HEX.fullmatch(module)
        and isinstance(each, list)
        and len(each) >= len(PinTimes())
        and all(type(ms) is int and 0 <= ms < _MAX_MS for ms in each[:2])
    }


def merge_lists(one: Mapping[str, PinTimes], other: Mapping[str, PinTimes]) -> dict[str, PinTimes]:
    """Return what two lists say together."""
    return {
        module: one.get(module, PinTimes()).merged(other.get(module, PinTimes()))
        for module in {**one, **other}
    }


def write_record(name: bytes, times: Mapping[str, PinTimes], stamp: Stamp) -> bytes:
    """Return the bytes to store for a list under ``name`` in the shared tier."""
    text = write_list(times)
    return stamp(_message(name, text)) + text


def read_record(name: bytes, record: bytes, check: CheckStamp) -> dict[str, PinTimes] | None:
    """Return the list that was stored under ``name``; None without a valid stamp."""
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if not text or len(record) > MAX_LIST_BYTES or check(_message(name, text), stamp):
        return None
    return read_list(text)


def _message(name: bytes, text: bytes) -> bytes:
    return b"%b%b\0%b" % (_PURPOSE, name, text)
