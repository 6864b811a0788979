"""Requests made from their descriptors: each field valid, too long, too often, or malformed.

What a message is made of is drawn, and then written by hand, since protobuf would not write most
of it: numbers in more bytes than they need, wrong wire types, fields twice, groups, lies about
lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)
_TEXTS = {FieldDescriptor.TYPE_STRING: _LENGTH, FieldDescriptor.TYPE_BYTES: _LENGTH}
_MANY_BYTES = 20_000
"""The most bytes in one field; far more would only take longer to make."""
_BOUNDS = (64, 128, 256, 10_000)
"""Of the texts and the repeated fields that have one."""


_ASKEW = 30
"""How much of a message is malformed, or around a bound, of 100."""


def varint(number: int, more_bytes: int = 0) -> bytes:
    """Write a number, with some bytes more than it needs."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    for _ in range(min(more_bytes, 10 - len(out))):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


@st.composite
def messages(draw: st.DrawFn, message: Descriptor, *, depth: int = 0) -> bytes:
    """One serialized message of a type, or something that looks like one."""
    pieces = []
    for _ in range(draw(st.integers(0, 6 if depth == 0 else 3))):
        if not message.fields or _happens(draw, _ASKEW):
            pieces.append(draw(_strange(message, depth)))
            continue
        field = draw(st.sampled_from(list(message.fields)))
        piece = draw(_field(field, depth))
        if _happens(draw, _ASKEW):
            # Around a bound, unless the whole would become too large to be made quickly.
            times = draw(st.sampled_from(_BOUNDS)) + draw(st.integers(-1, 1))
            times = min(times, 1 + 200_000 // (len(piece) or 1))
        else:
            times = draw(st.integers(1, 2))
        pieces.append(piece * times)
    raw = b"".join(pieces)
    if _happens(draw, 3):
        raw = raw[: draw(st.integers(0, len(raw)))]
    return raw


def requests(methods: Mapping[str, Descriptor]) -> st.SearchStrategy[tuple[bytes, str]]:
    """A message for any of these methods, and the method."""
    return st.sampled_from(sorted(methods)).flatmap(
        lambda method: st.tuples(messages(methods[method]), st.just(method))
    )


def _happens(draw: st.DrawFn, percent: int) -> bool:
    return draw(st.integers(0, 99)) < percent


@st.composite
def _field(draw: st.DrawFn, field: FieldDescriptor, depth: int) -> bytes:
    more = draw(st.sampled_from([0, 0, 0, 1, 3]))
    if field.message_type:
        payload = draw(messages(field.message_type, depth=depth + 1))
    elif field.type in _TEXTS:
        payload = draw(_text(field))
    else:
        number = draw(_numbers(field))
        return varint(field.number << 3 | _VARINT, more) + varint(number % 2**64, more)
    length = len(payload)
    if _happens(draw, 2):
        length = draw(st.integers(0, 2**32))
    return varint(field.number << 3 | _LENGTH, more) + varint(length, more) + payload


@st.composite
def _text(draw: st.DrawFn, field: FieldDescriptor) -> bytes:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.sampled_from([b"", b"\0asm\1\0\0\0", b"(module)"]) | st.binary(max_size=60))
    if _happens(draw, _ASKEW):
        length = draw(st.sampled_from(_BOUNDS)) + draw(st.integers(-1, 1))
        return b"x" * draw(st.sampled_from([length, length, length, _MANY_BYTES]))
    if _happens(draw, 10):
        return draw(st.binary(max_size=20))  # No UTF-8.
    named = ("wasmtime", "wasmtime-50.0.1", "baseline", "0" * 64, "", "true", "consume_fuel")
    return draw(st.sampled_from(named) | st.text(max_size=20)).encode("utf-8", "surrogatepass")


def _numbers(field: FieldDescriptor) -> st.SearchStrategy[int]:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.integers(0, 1)
    return st.sampled_from([0, 1, 2, -1, 2**31 - 1, -(2**31), 2**63 - 1]) | st.integers(-5, 100)


@st.composite
def _strange(draw: st.DrawFn, message: Descriptor, depth: int) -> bytes:
    """Something that is no field of the message."""
    known: list[Any] = [field.number for field in message.fields]
    number = draw(st.sampled_from([*known, 0, 15, 16, 5000, 2**29 - 1, 2**29]))
    more = draw(st.sampled_from([0, 0, 0, 2]))
    kind = draw(st.integers(0, 7))
    tag = varint(number << 3 | kind, more)
    if kind == _VARINT:
        return tag + varint(draw(st.integers(0, 2**64 - 1)), more)
    if kind == _LENGTH:
        payload = draw(st.binary(max_size=40))
        piece = tag + varint(len(payload), more) + payload
        return piece * draw(st.sampled_from([1, 1, 1, 101]))
    if kind in (_FIXED32, _FIXED64):
        return tag + draw(st.binary(min_size=4 if kind == _FIXED32 else 8, max_size=8))
    if kind == _GROUP and depth < 4:
        inner = draw(_strange(message, depth + 1) | messages(message, depth=depth + 2))
        end = draw(st.sampled_from([number, number, number, 1, None]))
        return tag + inner + (b"" if end is None else varint(end << 3 | _END_GROUP))
    return tag
