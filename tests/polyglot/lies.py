"""A true artifact, and the lies that a server in the daemon's place can tell about it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded
from wasmkiln.v1.module_service_pb2 import CompileRequest, CompileResponse
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub
from wasmkiln.v1.types_pb2 import ArtifactHeader, HostFile

from tests.e2e import wasm
from tests.e2e.processes import eventually
from tests.lying import honest
from tests.lying.lies import about
from tests.lying.server import Answer
from tests.polyglot.kiln import FULL_ENGINE, Kiln

TRUTH = "the truth"
SHOWN = frozenset(
    {"origin", "queue_time", "compile_time", "imports", "exports", "types_truncated"}
    | {"signer_certificate", "compatibility"}
)
"""Fields on which nothing depends, so that clients compare them with nothing."""
_MISMATCH = "ARTIFACT_MISMATCH"
# A header of it has an element in each list.
_IMPORTS = '(module (import "env" "log" (func)) (func (export "f")))'


@dataclass(frozen=True)
class TrueAnswer:
    """A module, the header of its artifact by `FULL_ENGINE`, and the artifact."""

    module: Path
    header: ArtifactHeader
    code: bytes


def true_answer(kiln: Kiln) -> TrueAnswer:
    """Have a daemon compile a module."""
    module = kiln.folder / "imports.wasm"
    module.write_bytes(wasm.from_text(_IMPORTS))
    request = CompileRequest(module=module.read_bytes(), engine=FULL_ENGINE)
    with grpc.insecure_channel(kiln.address) as channel:
        first, *rest = ModuleServiceStub(channel).Compile(request)
    return TrueAnswer(module, first.header, b"".join(part.chunk for part in rest))


def lies_about(true: TrueAnswer) -> dict[str, tuple[list[bytes], str]]:
    """Return by their names answers to a Compile, and what has to come of each.

    That is "compiled" for the truth, and for lies about fields that a client only shows; else the
    error's reason, or "" for any error.
    """
    first, rest = header_first(true.header), chunk(true.code)
    lies = {TRUTH: ([first, rest], "compiled")}
    for name, lie in about(true.header):
        field = name.partition(" ")[0]
        if lie != true.header and field not in lies:
            due = "compiled" if field.partition(".")[0] in SHOWN else ""
            lies[field] = ([header_first(cast("ArtifactHeader", lie)), rest], due)
    for name, attestation in _attestations(true.header.attestation).items():
        signed = header_first(true.header, attestation=attestation)
        lies[name] = ([signed, rest], "ATTESTATION_INVALID")
    changed = chunk(true.code[:-1] + bytes([true.code[-1] ^ 1]))
    large = header_first(true.header, size_bytes=1 << 40)
    return lies | {
        "nothing": ([], _MISMATCH),
        "no message": ([b"\xff\xfe\xfd" * 100], ""),
        "no header": ([rest], _MISMATCH),
        "two headers": ([first, first, rest], _MISMATCH),
        "a header behind the bytes": ([rest, first], _MISMATCH),
        "no bytes": ([first], _MISMATCH),
        "too few bytes": ([first, chunk(true.code[:-1])], _MISMATCH),
        "too many bytes": ([first, rest, chunk(b"!")], _MISMATCH),
        "other bytes": ([first, changed], _MISMATCH),
        "too large": ([large, rest], "ARTIFACT_TOO_LARGE"),
    }


def header_first(header: ArtifactHeader, **changes: Any) -> bytes:
    """Return the message that has a header, of which some fields are others."""
    changed = ArtifactHeader()
    changed.CopyFrom(header)
    for name in changes:
        changed.ClearField(name)
    changed.MergeFrom(ArtifactHeader(**changes))
    return CompileResponse(header=changed).SerializeToString()


def chunk(content: bytes) -> bytes:
    """Return a message that has bytes."""
    return CompileResponse(chunk=content).SerializeToString()


def _attestations(true: bytes) -> dict[str, bytes]:
    """Envelopes whose signature, or key's name, is not that of the payload."""
    envelope = json.loads(true)
    [signature] = envelope["signatures"]
    payload = base64.b64decode(envelope["payload"])
    other = base64.b64encode(payload.replace(b'"core"', b'"cord"')).decode()
    forged = base64.b64encode(bytes(64)).decode()
    changed = {
        "another payload": envelope | {"payload": other},
        "another signature": envelope | {"signatures": [signature | {"sig": forged}]},
        "another signer": envelope | {"signatures": [signature | {"keyid": "0" * 64}]},
        "no signature": envelope | {"signatures": []},
    }
    return {
        name: json.dumps(each, separators=(",", ":")).encode() for name, each in changed.items()
    }


def file_lies(kiln: Kiln, true: TrueAnswer) -> dict[str, Answer]:
    """Return answers that name a file: the truth, and files that do not count.

    They are so old that their times tell a change. Who wants no file gets bytes.
    """
    folder = kiln.folder / f"stores-{os.urandom(4).hex()}"
    lies = {}
    for name, spoil in _SPOILS.items():
        path, named = stored(folder / name.replace(" ", "-"), true)
        with contextlib.suppress(PermissionError):  # only root can give a file away
            spoil(path, named)
            lies[name] = answer_by_file(true, named)
    made = time.time()
    eventually(lambda: time.time() - made > 2, "the clock stands still")
    return lies


def stored(store: Path, true: TrueAnswer) -> tuple[Path, HostFile]:
    """Write the artifact into a store. Return its path, and what a daemon says of it."""
    path = store / true.header.fingerprint / true.header.module_sha256[:2]
    path = path / true.header.module_sha256 / "artifact"
    path.parent.mkdir(parents=True, mode=0o755)
    path.write_bytes(true.code)
    path.chmod(0o640)
    found = path.stat()
    return path, HostFile(path=str(path), device=found.st_dev, inode=found.st_ino)


def answer_by_file(true: TrueAnswer, named: HostFile) -> Answer:
    """Return an answer that names a file, to whoever takes one."""

    def answer(request: bytes, _context: Any) -> Iterator[bytes]:
        if CompileRequest.FromString(request).accept_host_file:
            return iter([header_first(true.header, host_file=named)])
        return iter([header_first(true.header), chunk(true.code)])

    return answer


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def _pipe(path: Path, named: HostFile) -> None:
    path.unlink()
    os.mkfifo(path, 0o640)
    named.inode = path.stat().st_ino


def _other_file(path: Path, named: HostFile) -> None:
    named.inode += 1


def _other_layout(path: Path, named: HostFile) -> None:
    named.path = str(path.rename(path.with_name("another")))


def _through_dots(path: Path, named: HostFile) -> None:
    named.path = str(path.parent / ".." / path.parent.name / path.name)


_SPOILS: Mapping[str, Callable[[Path, HostFile], object]] = {
    TRUTH: lambda path, named: None,
    "others can write": lambda path, _: path.chmod(0o666),
    "others can write to its folder": lambda path, _: path.parent.chmod(0o777),
    "others can write to the store": lambda path, _: path.parents[3].chmod(0o777),
    "another user's file": lambda path, _: os.chown(path, 65534, -1),
    "another user's folder": lambda path, _: os.chown(path.parent, 65534, -1),
    "two names": lambda path, _: path.with_name("second").hardlink_to(path),
    "a link": lambda path, _: _link(path),
    "a folder that is a link": lambda path, _: _link(path.parent),
    "a pipe": _pipe,
    "another file": _other_file,
    "no file of a store": _other_layout,
    "a path with dots": _through_dots,
    "shorter": lambda path, _: os.truncate(path, 10),
    "other bytes": lambda path, _: path.write_bytes(path.read_bytes()[:-1] + b"!"),
    "no file": lambda path, _: path.unlink(),
}


@contextlib.contextmanager
def dying_server() -> Iterator[str]:
    """Speak HTTP/2 until a call arrives, then close the connection. Yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener,), daemon=True)
        accepting.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(60)


def _accept(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the listener was shut down
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                _until_a_call(connection)


def _until_a_call(connection: socket.socket) -> None:
    connection.settimeout(60)
    stream = connection.makefile("rb")
    # SETTINGS: length 0, type 4, no flags, stream 0.
    connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    stream.read(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
    kind = None
    while kind != 1:  # HEADERS
        start = stream.read(9)
        if len(start) < 9:
            return
        kind = start[3]
        stream.read(int.from_bytes(start[:3], "big"))


@contextlib.contextmanager
def resetting_server(
    cut_bytes: int, code: ErrorCodes | None
) -> Iterator[tuple[str, list[CompileRequest]]]:
    """Serve artifacts, the first of which is cut after so many bytes, as proxies do.

    Only its stream ends, with a code or, for None, as if it were whole but for the status. Yield
    the address, and a list of what is asked.
    """
    asked: list[CompileRequest] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=_serve, args=(listener, cut_bytes, code, asked))
        serving.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
        serving.join(60)


def _serve(
    listener: socket.socket, cut_bytes: int, code: ErrorCodes | None, asked: list[CompileRequest]
) -> None:
    with contextlib.suppress(OSError):  # the listener was shut down
        while True:
            connection, _ = listener.accept()
            http2 = H2Connection(H2Configuration(client_side=False))
            http2.initiate_connection()
            bodies: dict[int, bytes] = {}
            with connection, contextlib.suppress(OSError):
                connection.sendall(http2.data_to_send())
                while data := connection.recv(65536):
                    for event in http2.receive_data(data):
                        if isinstance(event, RequestReceived):
                            bodies[event.stream_id] = b""
                        elif isinstance(event, DataReceived):
                            bodies[event.stream_id] += event.data
                        elif isinstance(event, StreamEnded):
                            asked.append(CompileRequest.FromString(bodies[event.stream_id][5:]))
                            is_cut = len(asked) == 1
                            _answer(http2, event.stream_id, asked[-1], cut_bytes if is_cut else 0)
                            if not is_cut:
                                http2.send_headers(event.stream_id, [("grpc-status", "0")], True)
                            elif code is None:
                                http2.end_stream(event.stream_id)
                            else:
                                http2.reset_stream(event.stream_id, code)
                    connection.sendall(http2.data_to_send())


def _answer(http2: H2Connection, stream: int, request: CompileRequest, cut_bytes: int) -> None:
    begin, end = request.offset_bytes, cut_bytes or None
    header = header_first(honest.header(request), offset_bytes=begin)
    http2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
    for message in (header, chunk(honest.ARTIFACT[begin:end])):
        http2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)
