"""A server on a real port that answers each RPC with the bytes that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from tests.lying.honest import HONEST

# From a request's bytes (of Upload, from an iterator of them), and the call's context, to the
# messages of the answer.
Answer = Callable[[Any, Any], Iterator[bytes]]


class LyingServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Tells the truth (honest.py) where nothing else was chosen with `say` or `answers`."""

    def __init__(self) -> None:
        self.address = ""
        self.answers: dict[str, Answer] = {}
        self.calls: list[str] = []
        # How many messages were handed to gRPC, over all calls.
        self.sent = 0

    def say(self, method: str, *messages: bytes) -> None:
        """Return every call of a method ("Stats") with these messages."""
        self.answers[method] = lambda _request, _context: iter(messages)

    def fail(self, method: str, code: grpc.StatusCode, text: str, details: bytes = b"") -> None:
        """Refuse every call of a method; `details` are those of a google.rpc.Status."""

        def refuse(_request: bytes, context: Any) -> Iterator[bytes]:
            if details:
                context.set_trailing_metadata((("grpc-status-details-bin", details),))
            context.abort(code, text)
            yield b""

        self.answers[method] = refuse

    def service(self, details: Any) -> Any:
        """Handle every method as a stream, which on the wire a single answer is as well."""
        name = details.method.rpartition("/")[2]

        def run(request: Any, context: Any) -> Iterator[bytes]:
            self.calls.append(name)
            answer: Answer = self.answers.get(name) or HONEST[name]
            for message in answer(request, context):
                if not context.is_active():
                    return
                self.sent += 1
                yield message

        if name == "Upload":
            return grpc.stream_stream_rpc_method_handler(run)
        return grpc.unary_stream_rpc_method_handler(run)


@contextmanager
def lying_server(listen: str = "127.0.0.1:0") -> Iterator[LyingServer]:
    """Run a LyingServer."""
    liar = LyingServer()
    server = grpc.server(
        futures.ThreadPoolExecutor(4),
        handlers=(liar,),
        options=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_metadata_size", 2**20),
        ],
    )
    liar.address = listen.replace(":0", f":{server.add_insecure_port(listen)}")
    server.start()
    try:
        yield liar
    finally:
        server.stop(None).wait()
