"""What a listener serves: each service and the methods that implement it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
from grpc_channelz.v1 import channelz_pb2_grpc
from wasmkiln.v1 import admin_service_pb2, module_service_pb2

from wasmkilnd.rpc.calls import Behavior, Traffic, handler
from wasmkilnd.rpc.grpcio_services import LimitedServer
from wasmkilnd.rpc.services.admin import AdminServicer
from wasmkilnd.rpc.services.channelz import Channelz
from wasmkilnd.rpc.services.health import Health
from wasmkilnd.rpc.services.module import ModuleServicer
from wasmkilnd.rpc.services.reflection import add_reflection
from wasmkilnd.rpc.wire.messages import CompileCall

MODULE_SERVICE = "wasmkiln.v1.ModuleService"
ADMIN_SERVICE = "wasmkiln.v1.AdminService"
_OTHERS = ("grpc.health.v1.Health", "grpc.channelz.v1.Channelz")
SERVICES = (MODULE_SERVICE, ADMIN_SERVICE, *_OTHERS)

_DESCRIPTORS: Mapping[str, Any] = {
    MODULE_SERVICE: module_service_pb2.DESCRIPTOR.services_by_name["ModuleService"],
    ADMIN_SERVICE: admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
}

# The daemon accepts these while it drains. Operators look how the drain goes; they may shorten the
# grace, or try again if the first answer was lost.
_WHILE_DRAINING = ("Drain", "Stats", "GetCapabilities")

METHODS = tuple(
    f"/{service}/{method.name}"
    for service, descriptor in _DESCRIPTORS.items()
    for method in descriptor.methods
)


@dataclass(frozen=True, slots=True)
class Servicers:
    """The implementations."""

    module: ModuleServicer
    admin: AdminServicer

    def behaviors(self, service: str) -> Mapping[str, Behavior]:
        """Return the methods of a service by name."""
        if service == ADMIN_SERVICE:
            return {
                "Evict": self.admin.evict,
                "ListQuarantine": self.admin.list_quarantine,
                "ReleaseQuarantine": self.admin.release_quarantine,
                "Pin": self.admin.pin,
                "Unpin": self.admin.unpin,
                "ListPins": self.admin.list_pins,
                "Drain": self.admin.drain,
            }
        return {
            "Load": self.module.load,
            "Compile": self.module.compile,
            "Stats": self.module.stats,
            "GetCapabilities": self.module.get_capabilities,
            "FindMissing": self.module.find_missing,
        }


def serve(
    server: Any, servicers: Servicers, traffic: Traffic, ungated: Traffic, *, admin: bool
) -> Health:
    """Add every service to a server that has not started, AdminService if ``admin``.

    ``ungated`` is the traffic of calls that are accepted while the daemon drains. Return the
    health that the server tells.
    """
    ours: Sequence[str] = (MODULE_SERVICE, ADMIN_SERVICE) if admin else (MODULE_SERVICE,)
    for service in ours:
        _add(server, service, servicers.behaviors(service), traffic, ungated)
    limited = LimitedServer(server, traffic)
    health = Health(limited, ours)
    channelz_pb2_grpc.add_ChannelzServicer_to_server(Channelz(), limited)
    add_reflection(limited, (*ours, *_OTHERS))
    return health


def _add(
    server: Any,
    service: str,
    behaviors: Mapping[str, Behavior],
    traffic: Traffic,
    ungated: Traffic,
) -> None:
    def served(method: Any) -> Any:
        # What the handler of Compile returns is its last message.
        is_compile = method.name == "Compile"
        register = (
            grpc.stream_unary_rpc_method_handler
            if is_compile
            else (grpc.stream_stream_rpc_method_handler)
        )
        parse = CompileCall if is_compile else method.input_type._concrete_class.FromString
        passed = ungated if method.name in _WHILE_DRAINING else traffic
        if method.name != "Drain":
            passed = replace(passed, account_of=traffic.account_of)
        return register(handler(f"/{service}/{method.name}", parse, behaviors[method.name], passed))

    handlers = {method.name: served(method) for method in _DESCRIPTORS[service].methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
