"""Callers of a daemon, each with a connection of its own, well behaved or not."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import grpc
import h2.config
import h2.connection
import h2.events
from google.rpc import error_details_pb2, status_pb2
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc

from tests.e2e import wasm
from tests.e2e.daemon import Daemon
from tests.e2e.floods import headers_of
from tests.e2e.processes import eventually, jobs_of, send, stopped

ENGINE = "wasmtime-50.0.1"
COMPILE = "/wasmkiln.v1.ModuleService/Compile"
_tags = itertools.count(1)
BACKGROUND = (("wasmkiln-priority", "background"),)


class Caller:
    """A gRPC client with a connection of its own."""

    def __init__(self, daemon: Daemon, address: str = "") -> None:
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            # It takes in no more ahead of its reader than HTTP/2's first 64 KiB.
            ("grpc.http2.bdp_probe", 0),
        )
        self.channel = grpc.insecure_channel(address or daemon.address, options)
        self.stub = module_service_pb2_grpc.ModuleServiceStub(self.channel)

    def compile(self, module: bytes | str, **options: Any) -> Any:
        """Begin a call for a module's bytes or digest; return it without waiting."""
        source = {"sha256": module} if isinstance(module, str) else {"module": module}
        omit, engine = options.pop("omit_artifact", True), options.pop("engine", ENGINE)
        if name := options.pop("name", ""):
            options["metadata"] = (*options.get("metadata", ()), ("x-request-id", name))
        request = pb.CompileRequest(**source, engine=engine, omit_artifact=omit)
        return self.stub.Compile(request, **{"timeout": 120, **options})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


def modules(count: int) -> list[bytes]:
    """Return small modules, each unlike all others of this run."""
    return [wasm.many_functions(2, tag=next(_tags)) for _ in range(count)]


def header_of(call: Any) -> Any:
    """Wait for a call's end; return its header."""
    return next(iter(list(call))).header


def outcome_of(call: Any) -> grpc.StatusCode:
    """Wait for a call's end; return its code."""
    with contextlib.suppress(grpc.RpcError):
        list(call)
    code: grpc.StatusCode = call.code()
    return code


def failure_of(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str], float]:
    """Wait for a call's failure; return its code, reason, metadata and seconds to wait."""
    with contextlib.suppress(grpc.RpcError):
        raise AssertionError(f"it succeeded with {len(list(call))} messages")
    reason, metadata, retry_s = "", {}, 0.0
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    reason, metadata = info.reason, dict(info.metadata)
                elif detail.Unpack(retry):
                    retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return call.code(), reason, metadata, retry_s


def stopped_job(daemon: Daemon, begin: Callable[[bytes], Any]) -> tuple[int, Any]:
    """Have ``begin`` start calls with new modules until the job of one is stopped before it ends.

    Return the job's process, which the caller has to continue (SIGCONT), and the call.
    """
    while True:
        call = begin(wasm.many_functions(10_000, tag=next(_tags)))
        eventually(lambda call=call: call.done() or jobs_of(daemon.pid), "no job started")  # type: ignore[misc]
        if job := next(filter(stopped, jobs_of(daemon.pid)), 0):
            time.sleep(0.3)  # It may have sent its result before: then the call ends now.
            if not call.done():
                return job, call
            send(signal.SIGCONT, job)


@contextlib.contextmanager
def held_worker(daemon: Daemon) -> Iterator[None]:
    """Keep the daemon's only worker busy with one job until the end of the context."""
    with Caller(daemon) as holder:
        job, call = stopped_job(daemon, holder.compile)
        try:
            yield
        finally:
            os.kill(job, signal.SIGCONT)
        header_of(call)


class RawCaller:
    """A connection that speaks plain HTTP/2, and may break gRPC's rules."""

    def __init__(self, daemon: Daemon) -> None:
        host, _, port = daemon.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.events: list[h2.events.Event] = []
        self.connection.initiate_connection()
        self._flush()

    def begin(self, method: str, announced: int) -> int:
        """Begin a call with a message of ``announced`` bytes; return its stream."""
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, headers_of(method))
        self.connection.send_data(stream, struct.pack(">BI", 0, announced))
        self._flush()
        return stream

    def send(self, stream: int, message: int | bytes, timeout_s: float = 10) -> int:
        """Send a message or so many zeros, as far as the daemon reads; return how many bytes."""
        data = bytes(message) if isinstance(message, int) else message
        sent, deadline = 0, time.monotonic() + timeout_s
        while sent < len(data) and time.monotonic() < deadline and not self.ended(stream):
            window = self.connection.local_flow_control_window(stream)
            part = min(window, self.connection.max_outbound_frame_size, len(data) - sent)
            if part > 0:
                self.connection.send_data(stream, data[sent : sent + part])
                self._flush()
                sent += part
            self.receive(0.0 if part > 0 else 0.05)
        return sent

    def end(self, stream: int) -> None:
        """Say that no message follows."""
        self.connection.end_stream(stream)
        self._flush()

    def ping(self) -> None:
        """Ping once."""
        self.connection.ping(bytes(8))
        self._flush()

    def receive(self, timeout_s: float) -> None:
        """Read what the daemon sends within ``timeout_s``."""
        self.socket.settimeout(max(timeout_s, 0.001))
        with contextlib.suppress(TimeoutError):
            while data := self.socket.recv(65536):
                self.events += self.connection.receive_data(data)
                self._flush()
                self.socket.settimeout(0.001)

    def wait(self, stream: int, timeout_s: float = 60) -> dict[str, str]:
        """Wait for a call's end; return its trailers."""
        deadline = time.monotonic() + timeout_s
        while not (trailers := self.ended(stream)):
            assert time.monotonic() < deadline, "the call does not end"
            self.receive(0.05)
        return trailers

    def ended(self, stream: int) -> dict[str, str]:
        """Return the trailers of a call, none while it runs."""
        ends = (h2.events.TrailersReceived, h2.events.ResponseReceived)
        for event in self.events:
            if isinstance(event, ends) and event.stream_id == stream:
                headers = {str(name): str(value) for name, value in event.headers or ()}
                if "grpc-status" in headers:
                    return headers
        return {}

    def _flush(self) -> None:
        self.socket.settimeout(30)
        self.socket.sendall(self.connection.data_to_send())

    def __enter__(self) -> RawCaller:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
