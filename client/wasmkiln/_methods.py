"""The RPCs that the client calls: their paths, and what makes an answer usable.

A daemon's answer is parsed (`Method.read`), and then checked before the client does anything
with it (`Method.usable`, `check_loaded`, `still_missing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.wrappers_pb2 import Int32Value

from wasmkiln._untrusted import quoted
from wasmkiln.errors import UnexpectedAnswer
from wasmkiln.v1 import admin_service_pb2 as admin
from wasmkiln.v1 import module_service_pb2 as modules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import Descriptor

    from wasmkiln.v1.types_pb2 import ArtifactKey

# The longest list of the contract has 10,000 elements; a newer daemon may send more.
_MAX_ELEMENTS = 100_000
# FindMissing returns its keys with their settings; still_missing compares each.
_MAX_ELEMENTS_OF_KEYS = 1_000_000
# CompileResponse.chunk on the wire: field 2, length-delimited. A message has less than 2 GiB.
_CHUNK_TAG = b"\x12"
_MAX_LENGTH_BYTES = 5


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of an answer that cannot be parsed."""

    why: str


@dataclass(frozen=True)
class Method:
    """An RPC: its path, the class of its answer, and how many list elements that may have."""

    path: str
    answer: type[Message]
    max_elements: int = _MAX_ELEMENTS

    def read(self, wire: bytes) -> Message | Unreadable | memoryview:
        """Parse an answer, for `usable`. Raise nothing: gRPC would print a traceback."""
        try:
            return self.answer.FromString(wire)
        except DecodeError as error:
            return Unreadable(str(error))

    def usable(self, answer: Any) -> Any:
        """Return the answer itself.

        Raise UnexpectedAnswer when there is none, when it cannot be parsed, or when its lists
        have more than `max_elements` elements in all: 4 MiB hold two million, and a caller
        would walk through them for minutes.
        """
        if isinstance(answer, memoryview):
            return answer
        if answer is None:
            raise UnexpectedAnswer("the daemon ended the call without an answer")
        if isinstance(answer, Unreadable):
            raise UnexpectedAnswer(f"cannot read the daemon's answer: {quoted(answer.why)}")
        if _elements(answer, self.max_elements) > self.max_elements:
            raise UnexpectedAnswer(
                f"the daemon's answer has more than {self.max_elements:,} list elements: "
                "more than this client takes"
            )
        return answer


class Chunks(Method):
    """A stream whose messages mostly are chunks of bytes."""

    def read(self, wire: bytes) -> Message | Unreadable | memoryview:
        """Return a message's chunk without copying it, if it has nothing else.

        Such a message costs nothing to parse. protobuf would copy the bytes twice.
        """
        return _only_chunk(wire) or super().read(wire)


def _only_chunk(wire: bytes) -> memoryview | None:
    if wire[:1] != _CHUNK_TAG:
        return None
    length = shift = 0
    for at in range(1, min(len(wire), 1 + _MAX_LENGTH_BYTES)):
        length |= (wire[at] & 0x7F) << shift
        shift += 7
        if wire[at] < 0x80:
            chunk = memoryview(wire)[at + 1 :]
            return chunk if len(chunk) == length else None
    return None


LOAD = Method("/wasmkiln.v1.ModuleService/Load", modules.LoadResponse)
COMPILE = Chunks("/wasmkiln.v1.ModuleService/Compile", modules.CompileResponse)
STATS = Method("/wasmkiln.v1.ModuleService/Stats", modules.StatsResponse)
CAPABILITIES = Method("/wasmkiln.v1.ModuleService/GetCapabilities", modules.GetCapabilitiesResponse)
FIND_MISSING = Method(
    "/wasmkiln.v1.ModuleService/FindMissing", modules.FindMissingResponse, _MAX_ELEMENTS_OF_KEYS
)
EVICT = Method("/wasmkiln.v1.AdminService/Evict", admin.EvictResponse)
LIST_QUARANTINE = Method("/wasmkiln.v1.AdminService/ListQuarantine", admin.ListQuarantineResponse)
RELEASE_QUARANTINE = Method(
    "/wasmkiln.v1.AdminService/ReleaseQuarantine", admin.ReleaseQuarantineResponse
)
PIN = Method("/wasmkiln.v1.AdminService/Pin", admin.PinResponse)
UNPIN = Method("/wasmkiln.v1.AdminService/Unpin", admin.UnpinResponse)
LIST_PINS = Method("/wasmkiln.v1.AdminService/ListPins", admin.ListPinsResponse)
DRAIN = Method("/wasmkiln.v1.AdminService/Drain", admin.DrainResponse)
# On the wire, HealthCheckRequest{string service = 1} and HealthCheckResponse{enum status = 1}
# look like protobuf's wrappers of a string and an integer, so the client needs no other package.
HEALTH = Method("/grpc.health.v1.Health/Check", Int32Value)
_HEALTH_STATUS = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def health_status(value: int) -> str:
    """Return the name of a health status; "STATUS_7" for one that this client does not know."""
    return _HEALTH_STATUS[value] if 0 <= value < len(_HEALTH_STATUS) else f"STATUS_{value}"


def check_loaded(answer: modules.LoadResponse, sha256: str, size_bytes: int) -> None:
    """Raise UnexpectedAnswer when a Load's answer is about another module."""
    if answer.sha256 != sha256 or answer.size_bytes != size_bytes:
        raise UnexpectedAnswer(
            f"loaded module {sha256} of {size_bytes} bytes, and the daemon's answer is about "
            f"{quoted(answer.sha256) or 'none'} of {answer.size_bytes} bytes"
        )


def still_missing(
    asked: Sequence[ArtifactKey], missing: Sequence[ArtifactKey]
) -> list[ArtifactKey]:
    """Return the asked keys that an answer names.

    Raise UnexpectedAnswer when the answer names another key, or names them in another order.
    """
    found = []
    rest = iter(asked)
    for named in missing:
        key = next((key for key in rest if _same(key, named)), None)
        if key is None:
            raise UnexpectedAnswer(
                "the daemon reports a missing key that was not asked about: module "
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
    """Return the names of a message's lists, and its fields whose own messages have lists.

    A map of the contract holds no messages. To ask a descriptor whether it is a map's would import
    descriptor_pb2, which takes longer than a load.
    """
    repeated = tuple(field.name for field in kind.fields if field.is_repeated)
    nested = tuple(
        (field.name, field.is_repeated)
        for field in kind.fields
        if field.message_type is not None and any(_with_lists(field.message_type))
    )
    return repeated, nested
