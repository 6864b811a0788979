"""Read what a wasmtime engine writes about itself into each artifact, for loaders to compare.

It is the ELF section ``.wasmtime.engine``: a zero byte, the length of the version and the version;
then, in postcard's encoding, the target's triple, the compiler's flags and those of the CPU with
their names, and the tunables and proposals, which are numbers without names.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, Union

# Today's have some 1,100.
MOST_BYTES = 16 * 1024
NO_COLLECTOR = -1

_NAME = b".wasmtime.engine\0"
_MOST_SECTIONS = 64
# Versions, triples, names and values of flags: errors quote them.
_TEXT = re.compile(r"[A-Za-z0-9_.+-]{1,64}")

# A number, a text or a truth value.
Value = Union[int, str]


class Unreadable(ValueError):  # noqa: N818 - says what the bytes are
    """Bytes are no section of an engine, or no artifact with one. The message says why."""


class Section(NamedTuple):
    """What an engine says of itself.

    - ``cpu``: the CPU's flags, by name.
    - ``rest``: all else that loaders may compare: ``flag NAME`` of the compiler, ``collector``,
      ``tunable NUMBER``, and ``proposal BIT``, which is there if it is on.
    """

    version: str
    triple: str
    cpu: dict[str, Value]
    rest: dict[str, Value]


def in_artifact(artifact: bytes) -> bytes:
    """Return the section of an artifact. Raises Unreadable."""
    try:
        if artifact[:5] != b"\x7fELF\x02":
            raise Unreadable("it is neither an engine's section nor an artifact")
        (at,) = struct.unpack_from("<Q", artifact, 0x28)
        size, count, names = struct.unpack_from("<HHH", artifact, 0x3A)
        rows = [
            struct.unpack_from("<IIQQQQ", artifact, at + number * size)
            for number in range(min(count, _MOST_SECTIONS))
        ]
        for name, _, _, _, start, length in rows:
            named = rows[names][4] + name
            if artifact[named : named + len(_NAME)] == _NAME:
                return artifact[start : start + length]
    except (struct.error, IndexError, OverflowError):
        raise Unreadable("it is a damaged artifact") from None
    raise Unreadable("it is an artifact without an engine's section")


def key_of(artifact: bytes) -> str:
    """Return the SHA-256 of an artifact's section; empty where it has none."""
    try:
        return hashlib.sha256(in_artifact(artifact)).hexdigest()
    except Unreadable:  # Not every engine says what it compares.
        return ""


def parse(section: bytes) -> Section:
    """Return what a section says. Raises Unreadable."""
    try:
        if len(section) > MOST_BYTES or section[0]:
            raise Unreadable("it is no section of an engine that this daemon can read")
        at = 2 + section[1]
        numbers = _Numbers(section, at)
        triple, flags, cpu = numbers.text(), dict(numbers.flags()), dict(numbers.flags())
        # Without a garbage collector there is one number less.
        has_collector, *tunables, proposals = numbers.rest()
        collector = tunables.pop(0) if has_collector else NO_COLLECTOR
        rest: dict[str, Value] = {f"flag {name}": value for name, value in flags.items()}
        rest["collector"] = collector
        rest.update((f"tunable {number}", value) for number, value in enumerate(tunables))
        bits = range(proposals.bit_length())
        rest.update((f"proposal {bit}", 1) for bit in bits if proposals >> bit & 1)
        return Section(_text(section[2:at]), triple, cpu, rest)
    except (IndexError, ValueError) as failure:
        if isinstance(failure, Unreadable):
            raise
        raise Unreadable("it is damaged, or of an engine that this daemon cannot read") from None


def _text(encoded: bytes) -> str:
    """Return a text. Raises ValueError for what engines do not write."""
    text = encoded.decode("ascii")
    if not _TEXT.fullmatch(text):
        raise ValueError
    return text


class _Numbers:
    """Reads postcard's encoding. Raises IndexError, or ValueError."""

    def __init__(self, encoded: bytes, at: int) -> None:
        self._encoded, self._at = encoded, at

    def number(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._encoded[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError

    def text(self) -> str:
        size = self.number()
        self._at += size
        if self._at > len(self._encoded):
            raise IndexError
        return _text(self._encoded[self._at - size : self._at])

    def flags(self) -> Iterator[tuple[str, Any]]:
        for _ in range(self.number()):
            name, kind = self.text(), self.number()
            yield name, self.text() if kind == 0 else self.number()

    def rest(self) -> list[int]:
        found = []
        while self._at < len(self._encoded):
            found.append(self.number())
        return found
