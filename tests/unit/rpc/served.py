"""Every method that the daemon serves, by its path, with the descriptor of its requests."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from wasmkilnd.rpc.health import contract
from wasmkilnd.rpc.server import SERVICES


def methods() -> dict[str, Descriptor]:
    """Return the request's type of each method."""
    return {
        f"/{service}/{method.name}": method.input_type
        for service in SERVICES
        for method in contract().FindServiceByName(service).methods
    }


def fields(message: Descriptor) -> Iterator[FieldDescriptor]:
    """Return the fields of a message and of all in it."""
    for field in message.fields:
        yield field
        if field.message_type:
            yield from fields(field.message_type)
