"""Every lie about every field of a message, from the descriptors: none can be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Escapes that take a terminal over, NUL, a text that runs backwards, and lines of their own.
EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31m\0\u202egnp.exe\r\nerror: forged\u2028line\x9b1m\ttab"
TEXTS = (EVIL, "x" * 20_000, "../../../etc/passwd", "")

_INTEGERS = {
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
_MANY = 1_500

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
    for path, change in _changes(message, ()):
        lie = type(message)()
        lie.CopyFrom(message)
        change(lie)
        yield path, lie


def _changes(
    message: Message, steps: tuple[Any, ...]
) -> Iterator[tuple[str, Callable[[Message], None]]]:
    """Ways to change what stands behind `steps` of a message."""
    for field in message.DESCRIPTOR.fields:
        where = (*steps, field.name)
        name = ".".join(str(step) for step in where)
        for index, value in enumerate(_values(field)):
            yield f"{name} #{index}", _setter(where, field, value)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.message_type.full_name.startswith("google.protobuf."):
            for index, (seconds, nanos) in enumerate(_TIMES):
                yield f"{name} time #{index}", _time_setter(where, seconds, nanos)
        elif field.is_repeated:
            yield f"{name} many", _multiplier(where)
            yield from _changes(getattr(message, field.name)[0], (*where, 0))
        elif message.HasField(field.name):
            yield from _changes(getattr(message, field.name), where)
        if not field.is_repeated:
            yield f"{name} absent", _setter(where, field, None)


def _values(field: Any) -> tuple[Any, ...]:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return ({text[:1000]: text for text in TEXTS}, {str(n): "" for n in range(_MANY)}, {})
        return ()
    if field.type == FieldDescriptor.TYPE_STRING:
        values: tuple[Any, ...] = TEXTS
    elif field.type == FieldDescriptor.TYPE_BYTES:
        values = (b"", b"\xff" * 1000, b'{"payload": NaN}')
    elif field.type == FieldDescriptor.TYPE_ENUM:
        values = (0, 99, -1, 2**31 - 1)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        values = (False, True)
    elif field.type == FieldDescriptor.TYPE_DOUBLE:
        values = (float("nan"), float("inf"), float("-inf"), 1e308, -1.0)
    else:
        values = _INTEGERS[field.type]
    if field.is_repeated:
        return (list(values), list(values) * (_MANY // len(values)), [])
    return values


def _setter(where: tuple[Any, ...], field: Any, value: Any) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        owner = _owner(message, where)
        owner.ClearField(field.name)
        if isinstance(value, dict):
            getattr(owner, field.name).update(value)
        elif isinstance(value, list):
            getattr(owner, field.name).extend(value)
        elif value is not None:
            setattr(owner, field.name, value)

    return change


def _time_setter(where: tuple[Any, ...], seconds: int, nanos: int) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        time = getattr(_owner(message, where), where[-1])
        time.seconds, time.nanos = seconds, nanos

    return change


def _multiplier(where: tuple[Any, ...]) -> Callable[[Message], None]:
    def change(message: Message) -> None:
        rows = getattr(_owner(message, where), where[-1])
        rows.extend([rows[0]] * _MANY)

    return change


def _owner(message: Any, where: tuple[Any, ...]) -> Any:
    for step in where[:-1]:
        message = message[step] if isinstance(step, int) else getattr(message, step)
    return message
