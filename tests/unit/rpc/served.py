"""Every method that the daemon serves, by its path, with the descriptor of its requests."""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor
from wasmkilnd.rpc.health import contract
from wasmkilnd.rpc.server import SERVICES


def methods() -> dict[str, Descriptor]:
    """Return the request's type of each method."""
    return {
        f"/{service}/{method.name}": method.input_type
        for service in SERVICES
        for method in contract().FindServiceByName(service).methods
    }
