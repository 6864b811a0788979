"""The descriptors of every service that the daemon serves, in a pool of their own.

They are what reflection shows, and what the bounds of requests are made from. Two services are
described here because grpcio's packages lack them: grpc.reflection.v1, whose messages have the
fields of v1alpha's, and Health.List of grpc-proto's grpc/health/v1/health.proto. protobuf's default
pool refuses a second description of a file, and what other packages put there is nobody's to show.
The details of errors are among them: grpcurl looks their messages up to show them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from wasmkiln.v1 import admin_service_pb2, module_service_pb2

_ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_HEALTH = "grpc.health.v1"
_SERVED = (
    *(module_service_pb2, admin_service_pb2, channelz_pb2, reflection_pb2),
    error_details_pb2,
)


@cache
def contract() -> Any:  # protobuf's type stubs lack half of a pool's methods.
    """Return the pool."""
    pool = descriptor_pool.DescriptorPool()
    for module in _SERVED:
        _add(pool, module.DESCRIPTOR)
    pool.Add(_reflection_v1())
    pool.Add(_health_with_list())
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
    copy = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copy)
    return copy


def _reflection_v1() -> Any:
    v1 = _copy(reflection_pb2.DESCRIPTOR)
    v1.name = "grpc/reflection/v1/reflection.proto"
    v1.package = _V1
    for message in v1.message_type:
        for field in message.field:
            if field.type_name:  # Setting even an empty one marks a message field.
                field.type_name = field.type_name.replace(f".{_ALPHA}.", f".{_V1}.")
    for method in v1.service[0].method:
        method.input_type = method.input_type.replace(f".{_ALPHA}.", f".{_V1}.")
        method.output_type = method.output_type.replace(f".{_ALPHA}.", f".{_V1}.")
    return v1


def _health_with_list() -> Any:
    health = _copy(health_pb2.DESCRIPTOR)
    [service] = health.service
    if any(method.name == "List" for method in service.method):
        return health  # A newer package has it.
    health.message_type.add(name="HealthListRequest")
    response = health.message_type.add(name="HealthListResponse")
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    text, inner = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, f".{_HEALTH}"
    of_message = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
    entry.field.add(name="key", number=1, label=1, type=text)
    value = entry.field.add(name="value", number=2, label=1, type=of_message)
    value.type_name = f"{inner}.HealthCheckResponse"
    statuses = response.field.add(name="statuses", number=1, label=3, type=of_message)
    statuses.type_name = f"{inner}.HealthListResponse.StatusesEntry"
    service.method.add(
        name="List",
        input_type=f"{inner}.HealthListRequest",
        output_type=f"{inner}.HealthListResponse",
    )
    return health
