"""Server reflection under both of its names, so that grpcurl needs no proto file.

grpcio-reflection serves v1alpha only. The messages of v1 have the same fields, so one servicer
answers both. The descriptor of v1 is made from v1alpha's, so that clients can ask for that too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_V1_SERVICE = f"{_V1}.ServerReflection"


def add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve reflection of ``services`` and of itself, as v1 and v1alpha."""
    _describe_v1()
    names = (*services, reflection.SERVICE_NAME, _V1_SERVICE)
    servicer = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    # The same servicer again, under its other name.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_V1_SERVICE, {"ServerReflectionInfo": handler}),)
    )


def _describe_v1() -> None:
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(_V1_SERVICE)
    except KeyError:
        v1 = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(v1)
        v1.name = "grpc/reflection/v1/reflection.proto"
        v1.package = _V1
        for message in v1.message_type:
            for field in message.field:
                if field.type_name:  # Setting even an empty one marks a message field.
                    field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_V1}.")
        for method in v1.service[0].method:
            method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_V1}.")
            method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_V1}.")
        pool.AddSerializedFile(v1.SerializeToString())
