"""Every lie about every field of a message, from the descriptors: none can be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Escapes that take a terminal over, NUL, a text that runs backwards, and lines of their own.
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\0\u202egnp.exe\r\nerror: forged\u2028line\x9b1m\ttab"
TEXTS = (EVIL, "x" * 20_000, "../../../etc/passwd", "")

_SCALARS: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: (b"", b"\xff" * 1000, b'{"payload": NaN}'),
    FieldDescriptor.TYPE_ENUM: (0, 99, -1, 2**31 - 1),
    FieldDescriptor.TYPE_BOOL: (False, True),
    FieldDescriptor.TYPE_DOUBLE: (float("nan"), float("inf"), float("-inf"), 1e308, -1.0),
    FieldDescriptor.TYPE_UINT64: (0, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}
_TIMES = (
    (2**63 - 1, 2**31 - 1),
    (-(2**63), -(2**31)),
    (-5, 0),
    (0, -1),
    (1, -1),
    (10**15, 0),
)
_MANY, _MORE = 1_500, "more"

TWO = "two messages"
# What no message is, behind every honest answer or in its place.
RAW: dict[str, Callable[[bytes], list[bytes]]] = {
    "no message": lambda _: [],
    "nothing": lambda _: [b""],
    TWO: lambda honest: [honest, honest],
    "garbage": lambda _: [b"\xff\xfe\xfd" * 100],
    "cut off": lambda honest: [honest[:-1]],
    "of a newer daemon": lambda honest: [honest + b"\xc2\x3e\x03new"],
    "another wire type": lambda honest: [b"\x0d\0\0\0\0\x15\0\0\0\0" + honest],
    "a text that is no UTF-8": lambda honest: [b"\x0a\x02\xff\xff" + honest],
    "two million elements": lambda _: [
        b"".join(bytes([number << 3 | 2, 0]) for number in range(1, 16)) * 130_000
    ],
    "larger than gRPC takes": lambda honest: [
        honest + b"\xc2\x3e\x80\x80\x80\x03" + bytes(6 << 20)
    ],
}


def about(message: Message) -> Iterator[tuple[str, Message]]:
    """Each lie with its name: a copy of `message` with one field changed."""
    for steps, field in _fields(message, ()):
        for index, value in enumerate(_values(field)):
            lie = type(message)()
            lie.CopyFrom(message)
            owner: Any = lie
            for step in steps:
                owner = owner[step] if isinstance(step, int) else getattr(owner, step)
            _tell(owner, field, value)
            yield f"{'.'.join(map(str, (*steps, field.name)))} #{index}", lie


def _fields(message: Message, steps: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each field of a message with the steps that lead to its owner."""
    for field in message.DESCRIPTOR.fields:
        yield steps, field
        if field.message_type is None or _is_map(field) or _is_time(field):
            continue
        inner = getattr(message, field.name)
        if field.is_repeated:
            yield from _fields(inner[0], (*steps, field.name, 0))
        elif message.HasField(field.name):
            yield from _fields(inner, (*steps, field.name))


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_time(field: Any) -> bool:
    return field.message_type.full_name.startswith("google.protobuf.")  # type: ignore[no-any-return]


def _values(field: Any) -> list[Any]:
    """Return what to say in a field's place: None for nothing, `_MORE` for its first row again."""
    if _is_map(field):
        return [{text[:1000]: text for text in TEXTS}, {str(n): "" for n in range(_MANY)}, {}]
    if field.message_type is not None:
        return [*(_TIMES if _is_time(field) else ()), _MORE if field.is_repeated else None]
    values = _SCALARS[field.type]
    if field.is_repeated:
        return [list(values), list(values) * (_MANY // len(values)), []]
    return [*values, None]


def _tell(owner: Any, field: Any, value: Any) -> None:
    current = getattr(owner, field.name)
    if value == _MORE:
        current.extend([current[0]] * _MANY)
    elif isinstance(value, tuple):
        current.seconds, current.nanos = value
    else:
        owner.ClearField(field.name)  # which takes `current` away
        if isinstance(value, dict):
            getattr(owner, field.name).update(value)
        elif isinstance(value, list):
            getattr(owner, field.name).extend(value)
        elif value is not None:
            setattr(owner, field.name, value)
