"""What makes an answer one that the client can use, before anything is done with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from wasmkiln._text import quoted
from wasmkiln.errors import UnexpectedAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import Descriptor

    from wasmkiln.v1.module_service_pb2 import LoadResponse
    from wasmkiln.v1.types_pb2 import ArtifactKey


@dataclass(frozen=True)
class Unreadable:
    """Stands for an answer that is no message of its type."""

    why: str


def read(kind: type[Message], wire: bytes) -> Message | Unreadable:
    """Parse an answer. Raise nothing: gRPC would print a traceback."""
    try:
        return kind.FromString(wire)
    except DecodeError as error:
        return Unreadable(str(error))


def usable(answer: Any, max_elements: int) -> Any:
    """Return the answer itself.

    Raise UnexpectedAnswer when there is none, when it could not be read, or when its lists
    have more than `max_elements` elements in all: 4 MiB hold two million, which would keep
    whoever walks through them busy for minutes.
    """
    if answer is None:
        raise UnexpectedAnswer("the daemon ended the call without an answer")
    if isinstance(answer, Unreadable):
        raise UnexpectedAnswer(f"cannot read the daemon's answer: {quoted(answer.why)}")
    if _elements(answer, max_elements) > max_elements:
        raise UnexpectedAnswer(
            f"the daemon's answer has more than {max_elements:,} list elements: "
            "more than this client takes"
        )
    return answer


def check_loaded(answer: LoadResponse, sha256: str, size_bytes: int) -> None:
    """Raise UnexpectedAnswer when a Load's answer is about another module."""
    if answer.sha256 != sha256 or answer.size_bytes != size_bytes:
        raise UnexpectedAnswer(
            f"loaded module {sha256} of {size_bytes} bytes, and the daemon answers about "
            f"{quoted(answer.sha256) or 'none'} of {answer.size_bytes} bytes"
        )


def still_missing(
    asked: Sequence[ArtifactKey], missing: Sequence[ArtifactKey]
) -> list[ArtifactKey]:
    """Return those of the keys asked for that an answer names.

    Raise UnexpectedAnswer when it names another one, or not in the order asked.
    """
    found = []
    rest = iter(asked)
    for named in missing:
        key = next((key for key in rest if _same(key, named)), None)
        if key is None:
            raise UnexpectedAnswer(
                "the daemon says that a key is missing which was not asked about: module "
                f"{quoted(named.module_sha256) or 'none'}, engine {quoted(named.engine) or 'none'}"
            )
        found.append(key)
    return found


def _same(one: ArtifactKey, other: ArtifactKey) -> bool:
    return (
        one.module_sha256 == other.module_sha256
        and (one.engine, one.target, one.cpu) == (other.engine, other.target, other.cpu)
        and one.fingerprint == other.fingerprint
        and one.settings == other.settings
    )


def _elements(message: Message, limit: int) -> int:
    """Count the elements of all lists and maps in a message; stop once there are too many."""
    repeated, nested = _with_lists(message.DESCRIPTOR)
    values = [getattr(message, name) for name in repeated]
    count = sum(len(value) for value in values)
    for name, is_list in nested:
        if count > limit:
            break
        if is_list:
            for one in getattr(message, name):
                count += _elements(one, limit)
        elif message.HasField(name):
            count += _elements(getattr(message, name), limit)
    return count


@cache
def _with_lists(kind: Descriptor) -> tuple[tuple[str, ...], tuple[tuple[str, bool], ...]]:
    """Return the names of a message's lists, and its fields whose own messages have lists."""
    repeated = tuple(field.name for field in kind.fields if field.is_repeated)
    nested = tuple(
        (field.name, field.is_repeated)
        for field in kind.fields
        if field.message_type is not None
        and not field.message_type.GetOptions().map_entry
        and any(_with_lists(field.message_type))
    )
    return repeated, nested
