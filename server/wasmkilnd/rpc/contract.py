"""The descriptors of every service that the daemon serves, in a pool of their own.

They are what reflection shows. Two services are described here because grpcio's packages lack
them: grpc.reflection.v1, whose messages have the fields of v1alpha's, and Health.List of
grpc-proto's grpc/health/v1/health.proto. protobuf's default pool refuses a second description of a
file, and what other packages put there is nobody's to show. The details of errors are among them:
grpcurl looks their messages up to show them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from wasmkiln.v1 import admin_service_pb2, module_service_pb2

_SERVED = (
    *(module_service_pb2, admin_service_pb2, channelz_pb2, reflection_pb2),
    error_details_pb2,
)
_HEALTH_LIST = """
message_type { name: "HealthListRequest" }
message_type {
  name: "HealthListResponse"
  field { name: "statuses" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE
          type_name: ".grpc.health.v1.HealthListResponse.StatusesEntry" }
  nested_type {
    name: "StatusesEntry"
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE
            type_name: ".grpc.health.v1.HealthCheckResponse" }
    options { map_entry: true }
  }
}
"""
_LIST_METHOD = {
    "name": "List",
    "input_type": ".grpc.health.v1.HealthListRequest",
    "output_type": ".grpc.health.v1.HealthListResponse",
}


@cache
def contract() -> Any:  # protobuf's type stubs lack half of a pool's methods.
    """Return the pool."""
    pool = descriptor_pool.DescriptorPool()
    for module in _SERVED:
        _add(pool, module.DESCRIPTOR)
    v1 = text_format.Parse(
        str(_copy(reflection_pb2.DESCRIPTOR)).replace("v1alpha", "v1"),
        descriptor_pb2.FileDescriptorProto(),
    )
    v1.name = "grpc/reflection/v1/reflection.proto"
    pool.Add(v1)
    health = _copy(health_pb2.DESCRIPTOR)
    if not any(method.name == "List" for method in health.service[0].method):
        # A newer package has it.
        text_format.Merge(_HEALTH_LIST, health)
        health.service[0].method.add(**_LIST_METHOD)
    pool.Add(health)
    return pool


def message_class(name: str) -> Any:
    """Return the class of a message of the contract, for those that no package generated."""
    return message_factory.GetMessageClass(contract().FindMessageTypeByName(name))


def _add(pool: Any, file: Any) -> None:
    """Add a file and those that it imports, unless they are there."""
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        for imported in file.dependencies:
            _add(pool, imported)
        pool.Add(_copy(file))


def _copy(file: Any) -> Any:
    return descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb)
