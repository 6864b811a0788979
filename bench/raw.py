"""gRPC without a client around it: what both sides of a comparison are called with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2

COMPILE = "/wasmkiln.v1.ModuleService/Compile"

# A cold call sends the module itself.
_OPTIONS = (("grpc.max_send_message_length", -1),)


class RawStream:
    """One server-streaming method on a connection of its own; messages stay bytes."""

    def __init__(
        self,
        address: str,
        method: str,
        trusted: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Connect, over TLS with ``trusted``; send ``metadata`` with each call."""
        self._channel: Any = (
            grpc.secure_channel(address, trusted, _OPTIONS)
            if trusted
            else grpc.insecure_channel(address, _OPTIONS)
        )
        self._call = partial(self._channel.unary_stream(method), metadata=metadata)

    def drain(self, request: bytes = b"") -> None:
        """Call, and take every message."""
        for _ in self._call(request):
            pass

    def messages(self, request: bytes) -> list[bytes]:
        """Call, and answer every message."""
        return list(self._call(request))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def by_digest(sha256: str, engine_id: str, **more: Any) -> bytes:
    """Return the serialized request for a module's artifact; ``more`` fields as in the contract."""
    request = pb.CompileRequest(sha256=sha256, engine=engine_id, **more)
    return bytes(request.SerializeToString())


def by_bytes(wasm: bytes, engine_id: str, **more: Any) -> bytes:
    """Return the serialized request that carries the module; ``more`` as above."""
    request = pb.CompileRequest(module=wasm, engine=engine_id, **more)
    return bytes(request.SerializeToString())


def header_of(messages: list[bytes]) -> types_pb2.ArtifactHeader:
    """Return the header of a raw answer."""
    header: types_pb2.ArtifactHeader = pb.CompileResponse.FromString(messages[0]).header
    return header


def origin(messages: list[bytes]) -> int:
    """Return where the artifact in a raw answer came from."""
    return header_of(messages).origin
