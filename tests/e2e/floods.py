"""Senders of bad input: floods of one kind of HTTP/2 frame, and connections by the thousand."""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(
    10
)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
CANCEL = 8
STATS = "/wasmkiln.v1.ModuleService/Stats"
WATCH = "/grpc.health.v1.Health/Watch"

PER_SECOND = 50_000
_BATCH = 500  # frames, or pairs of them, in one write


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    head = struct.pack(">IBI", len(payload) << 8 | kind, flags, stream)
    return head + payload


def headers_of(path: str) -> list[tuple[str, str]]:
    """Return the headers of a call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "daemon"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]


def request_headers(path: str = STATS) -> bytes:
    """Return the header block of a call, which no dynamic table is needed to read."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return bytes(encoder.encode(headers_of(path)))


class Flood:
    """A connection that answers pings and settings correctly, and sends what tests tell it to."""

    def __init__(self, address: str) -> None:
        """Connect to ``host:port`` or ``unix:path``."""
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host, int(port)))
        # Who is not read any more is not waited for.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 2, 0))
        self.goaways: list[bytes] = []
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self.send(PREFACE + frame(SETTINGS, 0, 0))
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, data: bytes) -> bool:
        """Send ``data``; return False if the connection has ended."""
        try:
            with self._lock:
                self.socket.sendall(data)
        except OSError:
            self.closed.set()
        return not self.closed.is_set()

    def run(self, batches: Iterator[bytes], rate: float, seconds: float) -> int:
        """Send batches at ``rate`` frames a second; return how many."""
        sent, began = 0, time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            if sent > now * rate:
                time.sleep(min(0.01, sent / rate - now))
            elif not self.send(next(batches)):
                break
            else:
                sent += _BATCH
        return sent

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            # The reader is in recv, and closing alone would not wake it.
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _read(self) -> None:
        buffer = b""
        with contextlib.suppress(OSError):
            while data := self.socket.recv(65536):
                buffer += data
                while len(buffer) >= 9:
                    size = int.from_bytes(buffer[:3])
                    if len(buffer) < 9 + size:
                        break
                    self._react(buffer[3], buffer[4], buffer[9 : 9 + size])
                    buffer = buffer[9 + size :]
        self.closed.set()

    def _react(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == GOAWAY:
            self.goaways.append(payload[8:])
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0))


def _same(data: bytes) -> Iterator[bytes]:
    return itertools.repeat(data * _BATCH)


def _calls(one: Callable[[int], bytes]) -> Iterator[bytes]:
    """Send what ``one`` returns for each new stream."""
    streams = itertools.count(1, 2)
    while True:
        yield b"".join(one(next(streams)) for _ in range(_BATCH))


def _begun(stream: int, more: bytes = b"", block: bytes = request_headers()) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, block + more)


def _reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def _resets(path: str) -> Iterator[bytes]:
    block = request_headers(path)
    return _calls(lambda stream: _begun(stream, block=block) + _reset(stream))


def _after(first: bytes, then: bytes) -> Callable[[Flood], Iterator[bytes]]:
    def send(flood: Flood) -> Iterator[bytes]:
        flood.send(first)
        return _same(then)

    return send


def _hpack_bomb(_: Flood) -> Iterator[bytes]:
    """One large entry of the dynamic table, named 4,000 times in a header list."""
    entry = [b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4_000]
    return _calls(lambda stream: _begun(stream, (entry.pop() if entry else b"") + b"\xbe" * 4_000))


_LONG_HEADER = b"\x00\x01x\x7f\xf5\x7a" + b"y" * 15_860
_TABLE = b"\x00\x01\x00\x00\x10\x00\x00\x04\x00\x00\xff\xff"
KINDS: dict[str, Callable[[Flood], Iterator[bytes]]] = {
    "resets": lambda _: _resets(STATS),
    "resets-of-nothing": lambda _: _resets("/x/y"),
    "resets-of-watches": lambda _: _resets(WATCH),
    "settings": lambda _: _same(frame(SETTINGS, 0, 0)),
    "settings-table": lambda _: _same(frame(SETTINGS, 0, 0, _TABLE)),
    "pings": lambda _: _same(frame(PING, 0, 0, bytes(8))),
    "ping-acks": lambda _: _same(frame(PING, ACK, 0, bytes(8))),
    "window-updates": lambda _: _same(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))),
    "priorities": lambda _: _same(frame(PRIORITY, 0, 1, bytes(5))),
    "unknown-frames": lambda _: _same(frame(0x20, 0, 0, bytes(8))),
    "empty-data": _after(_begun(1), frame(DATA, 0, 1)),
    "continuations": _after(frame(HEADERS, 0, 1, request_headers()), frame(CONTINUATION, 0, 1)),
    "resets-of-large-headers": lambda _: _calls(lambda s: _begun(s, _LONG_HEADER) + _reset(s)),
    "hpack-bomb": _hpack_bomb,
    # Calls that never go on, and calls for whose answers nobody waits.
    "unfinished": lambda _: _calls(_begun),
    "short-calls": lambda _: _calls(lambda s: _begun(s) + frame(DATA, END_STREAM, s, bytes(5))),
    "goaways": lambda _: _same(frame(GOAWAY, 0, 0, bytes(8))),
    "late-resets": lambda _: _same(frame(RST_STREAM, 0, 1, bytes(4))),
}


def flood(address: str, kind: str, seconds: float) -> Counter[str]:
    """Send frames of a kind, over a new connection whenever one is closed; tell what happened."""
    done: Counter[str] = Counter()
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        try:
            with Flood(address) as one:
                done[kind] += one.run(KINDS[kind](one), PER_SECOND, left_s)
                done["closed by the daemon"] += one.closed.is_set()
        except OSError:
            done["refused"] += 1
            time.sleep(0.01)
        else:
            done["connections"] += 1
    return done


Connect = Callable[[], socket.socket]

OPENING = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
"""How a caller begins HTTP/2 without waiting for the daemon's settings."""


def _call(path: str, flags: int, data: bytes) -> bytes:
    headers = frame(HEADERS, END_HEADERS, 1, request_headers(path))
    return OPENING + headers + frame(DATA, flags, 1, data)


CROWDS = {
    "idle": OPENING,
    "watch": _call(WATCH, END_STREAM, bytes(5)),
    "half": _call("/wasmkiln.v1.ModuleService/Load", 0, b"\0\0\0\x10\0half"),
}
"""What each connection of a crowd sends to a gRPC port, by name."""

HALF = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Half: "
_WHOLE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
STRANGE = {
    "half": HALF,
    "silent": b"",
    "pipelined": _WHOLE * 200,
    "unread": _WHOLE,
    "status page": b"".join(
        b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
        for path in (b"/", b"/status", b"/status.json", b"/status/page.js") * 20
    ),
    "headers": b"GET /metrics HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(5000)),
    "long header": HALF + b"a" * 1_000_000,
    "http2": PREFACE + b"\0" * 64,
    "upgrade": _WHOLE[:-2]
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    + b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    + b"a" * 100_000,
    "no http": bytes(range(256)) * 16,
    "post": b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    + b"a" * 100_000,
    "chunks": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 10_000,
}
"""What a stranger may send to an HTTP port, by name."""


def over_tcp(address: str) -> Connect:
    """Return what connects to ``host:port``."""
    host, _, port = address.rpartition(":")
    return lambda: socket.create_connection((host.strip("[]"), int(port)), timeout=2)


def with_little_room(address: str) -> Connect:
    """Return what connects to ``host:port``, with little room for answers."""
    host, _, port = address.rpartition(":")

    def connect() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect((host, int(port)))
        return sock

    return connect


def hold_open(
    connect: Connect,
    openings: Sequence[bytes],
    count: int,
    over: Callable[[], object],
    begun: threading.Event | None = None,
    *,
    reads: bool = False,
) -> Counter[str]:
    """Keep ``count`` connections until it is over, and open those again that are closed.

    On each the next of ``openings`` is sent. Nothing that the daemon answers is read, unless it
    ``reads``. Tells how many were opened, refused and closed by the daemon.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 500)), hard))
    done: Counter[str] = Counter()
    held: set[socket.socket] = set()
    try:
        while not over():
            closed = {one for one in held if _is_closed(one, reads=reads)}
            for one in closed:
                one.close()
            done["closed by the daemon"] += len(closed)
            held -= closed
            while len(held) < count and not over():
                try:
                    one = connect()
                except OSError:  # Whoever listens takes no more of them: try again later.
                    done["refused"] += 1
                    break
                # A socket with a time-out would wait for the peer, even with MSG_DONTWAIT.
                one.setblocking(False)
                with contextlib.suppress(OSError):  # It may be closed already: then it is found so.
                    one.send(openings[done["connections"] % len(openings)])
                held.add(one)
                done["connections"] += 1
            if begun:
                begun.set()
            time.sleep(0.1)
    finally:
        for one in held:
            one.close()
    return done


@contextlib.contextmanager
def strangers(
    connect: Connect, opening: bytes, count: int, *, reads: bool = False
) -> Iterator[None]:
    """Hold ``count`` connections, once as many as can be are open, until the end of the context."""
    over, begun = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as thread:
        holding = thread.submit(
            hold_open, connect, [opening], count, over.is_set, begun, reads=reads
        )
        try:
            assert begun.wait(60)
            yield
        finally:
            over.set()
    assert holding.result()


UPGRADE = b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
_FILLERS = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 4_000) for number in range(60))
BEHIND = {
    "an upgrade": (UPGRADE, bytes(2**20)),
    "bytes": (b"\r\n", bytes(2**20)),
    "requests": (b"\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n" + _FILLERS + b"\r\n"),
}
"""What ends a request, and what a client may go on to send to an HTTP port, by name."""


@contextlib.contextmanager
def stuffed(connect: Connect, opening: bytes, more: bytes, count: int) -> Iterator[None]:
    """Hold ``count`` connections: ``opening``, and behind it ``more`` as often as it is taken.

    Each sends 6 MiB at most, until none has been taken for a second. No answer is read.
    """
    with contextlib.ExitStack() as stack:
        left: dict[socket.socket, memoryview] = {}
        behind = memoryview(more * (6 * 2**20 // len(more)))
        for _ in range(count):
            one = stack.enter_context(connect())
            one.sendall(opening)
            left[one] = behind
        for one in left:
            one.recv(1, socket.MSG_PEEK)  # Its answer has begun.
            one.setblocking(False)
        taken_s = time.monotonic()
        while left and time.monotonic() < taken_s + 1:
            for one, rest in list(left.items()):
                try:
                    left[one] = rest[one.send(rest) :]
                    taken_s = time.monotonic()
                except BlockingIOError:
                    continue
                except OSError:  # The daemon has closed it.
                    del left[one]
                    continue
                if not left[one]:
                    del left[one]
            time.sleep(0.05)
        yield


def _is_closed(sock: socket.socket, *, reads: bool) -> bool:
    try:
        while data := sock.recv(65536 if reads else 1, 0 if reads else socket.MSG_PEEK):
            if not reads:
                break
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not data
