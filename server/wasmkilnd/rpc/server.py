"""The gRPC server: its options, its addresses, and which service is served how."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from grpc_channelz.v1 import channelz
from wasmkiln.v1 import admin_service_pb2, module_service_pb2

from wasmkilnd.rpc.admin_servicer import AdminServicer
from wasmkilnd.rpc.calls import Behavior, CallGate, RecordCall, observed
from wasmkilnd.rpc.health import Health
from wasmkilnd.rpc.module_servicer import ModuleServicer
from wasmkilnd.rpc.reflection import add_reflection

MODULE_SERVICE = "wasmkiln.v1.ModuleService"
ADMIN_SERVICE = "wasmkiln.v1.AdminService"
SERVICES = (MODULE_SERVICE, ADMIN_SERVICE, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz")

METHODS = (
    *(
        f"/{MODULE_SERVICE}/{m.name}"
        for m in module_service_pb2.DESCRIPTOR.services_by_name["ModuleService"].methods
    ),
    *(
        f"/{ADMIN_SERVICE}/{m.name}"
        for m in admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].methods
    ),
)

# A module above its limit should get the daemon's own answer, which says so, rather
# than the transport's; a message above this gets the transport's.
_LEAST_MESSAGE_BYTES = 64 * 1024 * 1024
_MESSAGE_OVERHEAD_BYTES = 1024 * 1024
_LAST_ANSWERS_S = 0.5


class CannotListen(Exception):  # noqa: N818 - says what the daemon cannot do
    """An address cannot be listened on; the message says which and why."""


class RpcServer:
    """One server on one or several addresses."""

    def __init__(
        self,
        module_servicer: ModuleServicer,
        admin_servicer: AdminServicer,
        record: RecordCall,
        max_module_bytes: int,
    ) -> None:
        receive = max(_LEAST_MESSAGE_BYTES, max_module_bytes + _MESSAGE_OVERHEAD_BYTES)
        self.largest_module_bytes = receive - _MESSAGE_OVERHEAD_BYTES
        """What the transport lets in, whatever the limit on modules becomes."""
        self._gate = CallGate()
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", receive),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # A second daemon on one port is a mistake: say so.
                ("grpc.max_metadata_size", 16 * 1024),
            ]
        )
        self._add(
            MODULE_SERVICE,
            module_service_pb2.DESCRIPTOR.services_by_name["ModuleService"],
            {
                "Load": module_servicer.load,
                "Compile": module_servicer.compile,
                "Stats": module_servicer.stats,
                "GetCapabilities": module_servicer.get_capabilities,
                "FindMissing": module_servicer.find_missing,
            },
            record,
        )
        self._add(
            ADMIN_SERVICE,
            admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
            {
                "Evict": admin_servicer.evict,
                "ListQuarantine": admin_servicer.list_quarantine,
                "ReleaseQuarantine": admin_servicer.release_quarantine,
                "Drain": admin_servicer.drain,
            },
            record,
        )
        self.health = Health(self._server, (MODULE_SERVICE, ADMIN_SERVICE))
        channelz.add_channelz_servicer(self._server)
        add_reflection(self._server, SERVICES)

    def _add(
        self, service: str, descriptor: Any, behaviors: dict[str, Behavior], record: RecordCall
    ) -> None:
        handlers = {}
        for method in descriptor.methods:
            # Drain is let in while the daemon drains: it may hurry, and who tries again
            # because the first answer was lost gets one.
            gate = CallGate() if method.name == "Drain" else self._gate
            call = observed(f"/{service}/{method.name}", behaviors[method.name], record, gate)
            deserialize = method.input_type._concrete_class.FromString
            if method.server_streaming:
                # These answer messages that are serialized already.
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(
                    call, request_deserializer=deserialize, response_serializer=None
                )
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                    call,
                    request_deserializer=deserialize,
                    response_serializer=method.output_type._concrete_class.SerializeToString,
                )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )

    async def start(self, addresses: Sequence[str]) -> list[str]:
        """Listen and serve; answer the addresses with the real ports. Raises CannotListen."""
        bound = [self._bind(address) for address in addresses]
        await self._server.start()
        return bound

    def _bind(self, address: str) -> str:
        path = _unix_path(address)
        if path:
            if not Path(path).parent.is_dir():
                raise CannotListen(f"cannot listen on {address}: {Path(path).parent} is no folder")
            _refuse_live_socket(address, path)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise CannotListen(
                f"cannot listen on {address}: it is in use, or not an address of this machine;"
                " choose another with --listen or WASMKILN_LISTEN"
            )
        if path:
            with contextlib.suppress(OSError):
                os.chmod(path, 0o600)  # noqa: PTH101
            return address
        return f"{address.rpartition(':')[0]}:{port}"

    @property
    def running_calls(self) -> int:
        """How many calls are being answered."""
        return self._gate.running

    def refuse_calls(self) -> None:
        """Answer new calls with SERVER_DRAINING, and watchers of the health that so it is."""
        self.health.set(False)
        self._gate.close()

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._gate.idle()

    async def stop(self) -> None:
        """Close every connection, ending what still runs a moment later.

        The moment is for answers that are on their way, such as that of a
        compilation that was just given up.
        """
        await self._server.stop(_LAST_ANSWERS_S)


def _unix_path(address: str) -> str:
    if not address.startswith("unix:"):
        return ""
    return address.removeprefix("unix:").removeprefix("//")


def _refuse_live_socket(address: str, path: str) -> None:
    """gRPC takes a socket file over from whoever listens there: let it only from the dead."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116
            raise CannotListen(f"cannot listen on {address}: a file that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(OSError):
            probe.connect(path)
            raise CannotListen(
                f"cannot listen on {address}: another process serves there;"
                " choose another with --listen or WASMKILN_LISTEN"
            )
