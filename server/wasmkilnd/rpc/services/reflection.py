"""Server reflection under both of its names, so that grpcurl needs no proto file.

grpcio-reflection serves v1alpha only. The messages of v1 have the same fields, so one servicer
answers both. It shows the contract's own pool, in which v1 and Health.List are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from wasmkilnd.rpc.wire.contract import contract

V1_SERVICE = "grpc.reflection.v1.ServerReflection"


def add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve reflection of ``services`` and of itself, as v1 and v1alpha."""
    names = (*services, reflection.SERVICE_NAME, V1_SERVICE)
    servicer = reflection.aio.ReflectionServicer(names, _Symbols())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    # The same servicer again, under its other name.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(V1_SERVICE, {"ServerReflectionInfo": handler}),)
    )


class _Symbols:
    """The contract's pool, as the servicer uses one; it finds methods too."""

    def __init__(self) -> None:
        self._pool = contract()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's name
        """Return the file of anything that has a name. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, name = symbol.rpartition(".")
        # protobuf's own looks for no methods, which `grpcurl describe` asks for; and it knows the
        # values of an enum beside the enum alone, where grpcurl looks for them inside.
        try:
            return self._pool.FindMethodByName(symbol).containing_service.file
        except KeyError:
            enum = self._pool.FindEnumTypeByName(parent)
            return enum.values_by_name[name].type.file
