"""Read from one of wasmtime's artifacts for which garbage collector its code is.

An artifact has a section in which the engine writes what a loader compares: its version, then, in
postcard's encoding, the target, the compiler's flags for all targets, those for this one, and
the tunables, which begin with the collector. Their layout is no promise of wasmtime's, so what
does not look as expected is taken for unknown.
"""

from __future__ import annotations

from .wasmtime_settings import COLLECTORS, NO_COLLECTOR

# How a flag's value is written: by number, as a text, a number or a truth value.
_TEXT, _NUMBER, _BOOL = range(3)


def collector_of(artifact: bytes, triple: str) -> str:
    """Return the collector's name, or ``none`` if the code needs none; "" if it is unknown."""
    written = bytes([len(triple)]) + triple.encode()
    start = artifact.find(written)
    if not triple or start < 0:
        return ""
    try:
        after = _skip_flags(artifact, _skip_flags(artifact, start + len(written)))
        is_there, number = artifact[after], artifact[after + 1]
    except (IndexError, ValueError):
        return ""
    if is_there == 0:
        return NO_COLLECTOR
    return COLLECTORS[number] if is_there == 1 and number < len(COLLECTORS) else ""


def _skip_flags(artifact: bytes, at: int) -> int:
    """Return where a list of flags, each a name and a value, ends."""
    count = _length(artifact, at)
    at += 1
    for _ in range(count):
        at += 1 + _length(artifact, at)
        kind = artifact[at]
        at += 1
        if kind == _TEXT:
            at += 1 + _length(artifact, at)
        elif kind in (_NUMBER, _BOOL):
            at += 1
        else:
            raise ValueError("not a flag")
    return at


def _length(artifact: bytes, at: int) -> int:
    """Return a length; those of flags and of their names need one byte."""
    length = artifact[at]
    if length >= 0x80:
        raise ValueError("too long for flags")
    return length
