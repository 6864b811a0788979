"""The gRPC servers: one for each group of addresses, with gates and budgets that all share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from wasmkilnd.account import Account, unlimited
from wasmkilnd.model import PLAINTEXT, Artifact, Identity, TrafficLimits
from wasmkilnd.network import SocketAccess
from wasmkilnd.ports import Auditor, Guard, Tracing
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.rpc.calls import CallGate, CallRecorder, Traffic, abort
from wasmkilnd.rpc.connections import sockets
from wasmkilnd.rpc.connections.call import CallsUnderWay
from wasmkilnd.rpc.connections.flood_guard import FloodGuard
from wasmkilnd.rpc.connections.reserve import ConnectionReserve
from wasmkilnd.rpc.flow.receive import Receiver
from wasmkilnd.rpc.flow.send import Sender
from wasmkilnd.rpc.listener import Listener, ListenGroup, TransportLimits
from wasmkilnd.rpc.served import Servicers, serve
from wasmkilnd.rpc.services.admin import AdminServicer
from wasmkilnd.rpc.services.health import Health
from wasmkilnd.rpc.services.module import ModuleServicer

# A module above its limit should get the daemon's own error, which explains it. A message above
# this size gets gRPC's.
_LEAST_MESSAGE_BYTES = 16 * 1024 * 1024
_MESSAGE_OVERHEAD_BYTES = 1024 * 1024
_LAST_ANSWERS_S = 0.5


class RpcServer:
    """Serves gRPC on every address that the settings name."""

    def __init__(
        self,
        module_servicer: ModuleServicer,
        admin_servicer: AdminServicer,
        recorder: CallRecorder,
        transport: TransportLimits,
        limits: Reloadable[TrafficLimits],
        in_memory: Callable[[Artifact], bool],
        guard: Guard,
        auditor: Auditor,
        account_of: Callable[[Identity], Account] = unlimited,
        tracing: Tracing | None = None,
    ) -> None:
        """``in_memory`` tells whether the memory tier holds an artifact."""
        message = max(_LEAST_MESSAGE_BYTES, transport.module_bytes + _MESSAGE_OVERHEAD_BYTES)
        self.largest_module_bytes = message - _MESSAGE_OVERHEAD_BYTES
        """The largest module that gRPC lets in, whatever a reload sets the limit to."""
        self._transport = transport
        self._ports: frozenset[int] = frozenset()
        self._reserve: asyncio.Task[None] | None = None
        self._flood_guard: FloodGuard | None = None
        self._message_bytes = message
        self._limits = limits

        self._gate = CallGate(limits)
        self._traffic = Traffic(
            self._gate,
            CallGate(limits),
            CallsUnderWay(remembered=4 * transport.connections),
            Receiver(limits, message),
            Sender(limits, abort, self._close_connection, in_memory),
            recorder,
            guard,
            auditor,
            PLAINTEXT,
            account_of,
            tracing,
        )
        self._ungated = replace(self._traffic, gate=CallGate(limits), account_of=unlimited)
        self._servicers = Servicers(module_servicer, admin_servicer)
        self._listeners: list[Listener] = []
        self._healths: list[Health] = []

    async def start(
        self, groups: Sequence[ListenGroup], socket_access: SocketAccess
    ) -> list[list[str]]:
        """Listen and serve; return the addresses of each group, with the real ports.

        Raises CannotListen.
        """
        for group in groups:
            listener = Listener(group, self._transport, self._message_bytes)
            self._listeners.append(listener)
            traffic, ungated = (
                replace(each, entrance=group.entrance) for each in (self._traffic, self._ungated)
            )
            health = serve(listener.server, self._servicers, traffic, ungated, admin=group.admin)
            self._healths.append(health)
        bound = [listener.bind(socket_access) for listener in self._listeners]
        for listener in self._listeners:
            await listener.server.start()
        ports = self._ports = frozenset().union(*(each.ports for each in self._listeners))
        closed = self._traffic.recorder.connections_closed
        reserve = ConnectionReserve(self._transport.connections, self._traffic.under_way, closed)
        self._reserve = asyncio.create_task(reserve.run(ports))
        self._flood_guard = FloodGuard(
            ports, lambda: self._limits.current.calls, self._message_bytes, closed
        )
        self._flood_guard.start()
        return bound

    def set_health(self, serving: bool) -> None:
        """Set the health that every server tells, and tell watchers."""
        for health in self._healths:
            health.set(serving)

    async def _close_connection(self, peer: str) -> None:
        if address := sockets.parse(peer):
            closed = await asyncio.to_thread(sockets.close, (address,), self._ports)
            self._traffic.recorder.connections_closed("not_read", closed)

    @property
    def traffic(self) -> Traffic:
        """The gates and budgets, for the gauges of what calls hold now."""
        return self._traffic

    @property
    def running_calls(self) -> int:
        """How many calls run now."""
        return self._gate.running

    def refuse_calls(self) -> None:
        """Refuse new calls with SERVER_DRAINING, and tell watchers of the health."""
        self.set_health(False)
        self._gate.close()

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._gate.idle()

    async def stop(self) -> None:
        """Close every connection, and end the calls that still run half a second later.

        The delay is for answers that are on their way, such as that of a compilation that the
        daemon has just given up.
        """
        if self._flood_guard:
            await asyncio.to_thread(self._flood_guard.stop)
        if self._reserve:
            self._reserve.cancel()
            await asyncio.gather(self._reserve, return_exceptions=True)
        await asyncio.gather(
            *(listener.server.stop(_LAST_ANSWERS_S) for listener in self._listeners)
        )
