"""The bounds of a request: how often and how long each field may be, for every service.

A message of a few bytes can cost megabytes and seconds once protobuf has built it. So every
request is checked against this table first (:mod:`wasmkilnd.rpc.wire.requests`). A method with a
field that has no row here cannot be served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from wasmkilnd.rpc.wire.contract import contract

MAX_FIND_MISSING_KEYS = 10_000
MAX_SETTINGS = 64
"""Of one artifact. Today's engines have at most 30."""
MAX_ENCODINGS = 16
"""Of one answer. Today the daemon knows one."""
MAX_FIELDS = 1_000_000
"""Of one request, those of inner messages included: 10,000 keys with every setting."""
MAX_UNKNOWN_FIELDS = 100
"""Of one request: fields that a newer client may know and this daemon does not."""
MAX_UNKNOWN_BYTES = 64 * 1024
"""Of all unknown fields together."""

# A field that is not repeated may still be sent several times, and the last counts: that is how
# protobuf merges messages. No client merges many.
_MERGED = 8
_UNLIMITED = 2**31
"""As much as a message may have."""

# What a built value costs beside its bytes, as measured: in protobuf and as a Python object.
_VALUE_BYTES = 64
_MESSAGE_BYTES = 256
# A string is in memory twice for a while: in the message, and as a Python object.
_COPIES = 2
# What remains in memory of a part that was built alone and dropped again.
_LEFT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Bound:
    """A row of the table."""

    length: int = 0
    """The most bytes of one text or message; nothing for numbers."""
    times: int = _MERGED
    """How often a message may have the field."""
    one_by_one: bool = False
    """Whether the values are built one by one, never all at once (``rpc/wire/parts.py``)."""


_NUMBER = Bound()
_NAME = Bound(128)
"""Of engines, targets, CPUs and settings."""
_VALUE = Bound(256)
_DIGEST = Bound(128)
"""Longer than any digest, so that a malformed one gets the more precise error."""
_MODULE = Bound(_UNLIMITED)
"""Admission checks the limit on modules, with a reason of its own."""
_SYMBOL = Bound(1024)
_ENTRY = 512
"""Of a setting with its value."""
_KEY = 48 * 1024
"""Of an ArtifactKey with every setting."""

_API = "wasmkiln.v1."
_HEALTH = "grpc.health.v1."
_CHANNELZ = "grpc.channelz.v1."

TABLE: Mapping[str, Bound] = {
    f"{_API}LoadRequest.module": _MODULE,
    f"{_API}LoadRequest.expected_sha256": _DIGEST,
    f"{_API}LoadRequest.engine": _NAME,
    f"{_API}CompileRequest.sha256": _DIGEST,
    f"{_API}CompileRequest.module": _MODULE,
    f"{_API}CompileRequest.engine": _NAME,
    f"{_API}CompileRequest.target": _NAME,
    f"{_API}CompileRequest.cpu": _NAME,
    f"{_API}CompileRequest.settings": Bound(_ENTRY, MAX_SETTINGS),
    f"{_API}CompileRequest.SettingsEntry.key": _NAME,
    f"{_API}CompileRequest.SettingsEntry.value": _VALUE,
    f"{_API}CompileRequest.omit_artifact": _NUMBER,
    f"{_API}CompileRequest.skip_cache_lookup": _NUMBER,
    f"{_API}CompileRequest.accept_host_file": _NUMBER,
    f"{_API}CompileRequest.inline_limit_bytes": _NUMBER,
    f"{_API}CompileRequest.accept_encodings": Bound(128, MAX_ENCODINGS),
    f"{_API}CompileRequest.accept_fast": _NUMBER,
    f"{_API}FindMissingRequest.keys": Bound(_KEY, MAX_FIND_MISSING_KEYS, one_by_one=True),
    f"{_API}ArtifactKey.module_sha256": _DIGEST,
    f"{_API}ArtifactKey.engine": _NAME,
    f"{_API}ArtifactKey.target": _NAME,
    f"{_API}ArtifactKey.cpu": _NAME,
    f"{_API}ArtifactKey.settings": Bound(_ENTRY, MAX_SETTINGS),
    f"{_API}ArtifactKey.SettingsEntry.key": _NAME,
    f"{_API}ArtifactKey.SettingsEntry.value": _VALUE,
    f"{_API}ArtifactKey.fingerprint": _DIGEST,
    f"{_API}EvictRequest.module_sha256": _DIGEST,
    f"{_API}EvictRequest.engine": _NAME,
    f"{_API}EvictRequest.all": _NUMBER,
    f"{_API}EvictRequest.tier": _NUMBER,
    f"{_API}ReleaseQuarantineRequest.module_sha256": _DIGEST,
    f"{_API}ReleaseQuarantineRequest.all": _NUMBER,
    f"{_API}PinRequest.module_sha256": _DIGEST,
    f"{_API}UnpinRequest.module_sha256": _DIGEST,
    f"{_API}DrainRequest.grace": Bound(256),
    "google.protobuf.Duration.seconds": _NUMBER,
    "google.protobuf.Duration.nanos": _NUMBER,
    f"{_HEALTH}HealthCheckRequest.service": _VALUE,
    f"{_CHANNELZ}GetTopChannelsRequest.start_channel_id": _NUMBER,
    f"{_CHANNELZ}GetTopChannelsRequest.max_results": _NUMBER,
    f"{_CHANNELZ}GetServersRequest.start_server_id": _NUMBER,
    f"{_CHANNELZ}GetServersRequest.max_results": _NUMBER,
    f"{_CHANNELZ}GetServerRequest.server_id": _NUMBER,
    f"{_CHANNELZ}GetServerSocketsRequest.server_id": _NUMBER,
    f"{_CHANNELZ}GetServerSocketsRequest.start_socket_id": _NUMBER,
    f"{_CHANNELZ}GetServerSocketsRequest.max_results": _NUMBER,
    f"{_CHANNELZ}GetChannelRequest.channel_id": _NUMBER,
    f"{_CHANNELZ}GetSubchannelRequest.subchannel_id": _NUMBER,
    f"{_CHANNELZ}GetSocketRequest.socket_id": _NUMBER,
    f"{_CHANNELZ}GetSocketRequest.summary": _NUMBER,
    **{
        f"grpc.reflection.{version}.{field}": bound
        for version in ("v1", "v1alpha")
        for field, bound in {
            "ServerReflectionRequest.host": _SYMBOL,
            "ServerReflectionRequest.file_by_filename": _SYMBOL,
            "ServerReflectionRequest.file_containing_symbol": _SYMBOL,
            "ServerReflectionRequest.file_containing_extension": Bound(2048),
            "ServerReflectionRequest.all_extension_numbers_of_type": _SYMBOL,
            "ServerReflectionRequest.list_services": _SYMBOL,
            "ExtensionRequest.containing_type": _SYMBOL,
            "ExtensionRequest.extension_number": _NUMBER,
        }.items()
    },
}


@dataclass(frozen=True, slots=True)
class Row:
    """What the scan needs to know of a field at one place of a request."""

    path: str
    """The field's name in errors, e.g. ``keys.settings.value``."""
    bound: Bound
    cost_bytes: int
    """What each value costs once it is built, beside its bytes."""
    copies: int
    """How often its bytes are in memory once it is built."""
    inner: Plan | None
    """The rows of the message that the field holds, if it holds one."""


Plan: TypeAlias = "Mapping[int, Row]"
"""The rows of one message by tag, which is a field's number and wire type.

A known number with another wire type counts as an unknown field, as in protobuf.
"""

_LENGTH = 2
# By FieldDescriptor.type; groups are not served.
_WIRE_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: 1,
    FieldDescriptor.TYPE_FIXED64: 1,
    FieldDescriptor.TYPE_SFIXED64: 1,
    FieldDescriptor.TYPE_FLOAT: 5,
    FieldDescriptor.TYPE_FIXED32: 5,
    FieldDescriptor.TYPE_SFIXED32: 5,
    FieldDescriptor.TYPE_INT64: 0,
    FieldDescriptor.TYPE_UINT64: 0,
    FieldDescriptor.TYPE_INT32: 0,
    FieldDescriptor.TYPE_UINT32: 0,
    FieldDescriptor.TYPE_SINT32: 0,
    FieldDescriptor.TYPE_SINT64: 0,
    FieldDescriptor.TYPE_BOOL: 0,
    FieldDescriptor.TYPE_ENUM: 0,
    FieldDescriptor.TYPE_STRING: _LENGTH,
    FieldDescriptor.TYPE_BYTES: _LENGTH,
    FieldDescriptor.TYPE_MESSAGE: _LENGTH,
}


@cache
def plan_of(method: str) -> Plan:
    """Return the plan of a method's request, by its path, e.g. ``/grpc.health.v1.Health/Check``.

    Raises LookupError where a field has no row.
    """
    name = method.removeprefix("/").replace("/", ".")
    return _plan(contract().FindMethodByName(name).input_type)


def _plan(message: Descriptor, path: str = "", *, built: bool = True) -> Plan:
    return dict(_row(field, path, built=built) for field in message.fields)


def _row(field: FieldDescriptor, path: str, *, built: bool) -> tuple[int, Row]:
    if field.full_name not in TABLE or field.type not in _WIRE_TYPES:
        raise LookupError(f"{field.full_name} has no bound: add a row to rpc/wire/bounds.py")
    bound, wire_type = TABLE[field.full_name], _WIRE_TYPES[field.type]
    if field.is_repeated and wire_type != _LENGTH:
        raise LookupError(f"{field.full_name} may be packed, which the scan does not know yet")
    path = f"{path}.{field.name}" if path else field.name
    inner, cost, copies = None, _VALUE_BYTES, 0
    if field.message_type:
        inner = _plan(field.message_type, path, built=built and not bound.one_by_one)
        cost = _LEFT_BYTES if bound.one_by_one else _MESSAGE_BYTES
    elif wire_type == _LENGTH:
        copies = _COPIES
    if not built:
        cost = copies = 0
    return field.number << 3 | wire_type, Row(path, bound, cost, copies, inner)
