"""TLS on the admin server's connections: a session without I/O, and a transport that has one.

asyncio can speak TLS by itself, but only from the first byte on, and each such connection takes a
quarter of a MiB. Here a connection has its handshake while it is pending, and costs little.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

HANDSHAKE = 0x16
"""The first byte of a connection that begins with a handshake of TLS."""
_READ_BYTES = 16 * 1024


class TlsSession:
    """The server's side of TLS on one connection: turns bytes into bytes."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.open = False
        """Whether the handshake is over."""
        self.ended = False
        """Whether the client will send no more."""

    def feed(self, received: bytes) -> None:
        """Take in what the client sent."""
        self._incoming.write(received)

    def shake_hands(self) -> None:
        """Go on with the handshake as far as possible. Raises ssl.SSLError."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.object.do_handshake()
            self.open = True

    def read(self) -> bytes:
        """Return all that the client has sent, decrypted. Raises ssl.SSLError."""
        found = b""
        try:
            while part := self.object.read(_READ_BYTES):
                found += part
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self.ended = True
        return found

    def write(self, message: bytes) -> None:
        """Encrypt what is to be sent. Raises ssl.SSLError."""
        left = memoryview(message)
        while left:
            left = left[self.object.write(left) :]

    def end(self) -> None:
        """Tell the client that no more will be sent."""
        with contextlib.suppress(ssl.SSLError):
            self.object.unwrap()

    def to_send(self) -> bytes:
        """Return the encrypted bytes that are to be sent."""
        return self._outgoing.read()

    def certificate(self) -> bytes:
        """Return the client's certificate as PEM, and what it sent beside it; empty for none."""
        shown = self.object.getpeercert(binary_form=True)
        if not shown:
            return b""
        # Public from Python 3.13 on. There is none for a session that goes on.
        chain = self.object._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        if not chain:
            return ssl.DER_cert_to_PEM_cert(shown).encode()
        return "".join(each.public_bytes() for each in chain).encode()


class TlsTransport(asyncio.Transport):
    """A transport that encrypts, above one that does not."""

    def __init__(
        self, below: asyncio.Transport, session: TlsSession, protocol: asyncio.Protocol
    ) -> None:
        """``protocol`` gets what is decrypted. Bytes that came go to ``received``."""
        super().__init__()
        self._below = below
        self._session = session
        self._protocol: asyncio.Protocol = protocol
        self._certificate = session.certificate()
        below.set_protocol(_Below(self))

    def received(self, encrypted: bytes) -> None:
        """Decrypt bytes, and pass them on."""
        if self._below.is_closing():
            return
        try:
            self._session.feed(encrypted)
            decrypted = self._session.read()
        except ssl.SSLError:
            self._below.abort()
            return
        self._flush()  # TLS itself may have to answer
        if decrypted:
            self._protocol.data_received(decrypted)
        if self._session.ended:
            self.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport below tells, and about TLS."""
        match name:
            case "sslcontext":
                return self._session.object.context
            case "ssl_object":
                return self._session.object
            case "client_certificate":
                return self._certificate
        return self._below.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Encrypt and send."""
        if self._below.is_closing():
            return
        try:
            self._session.write(bytes(data))
        except ssl.SSLError:
            self._below.abort()
            return
        self._flush()

    def close(self) -> None:
        """Send what was written, and close."""
        if not self._below.is_closing():
            self._session.end()
            self._flush()
            self._below.close()

    def abort(self) -> None:
        """Close at once."""
        self._below.abort()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._below.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Pass what is decrypted to another protocol."""
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError("expected a protocol of streams")
        self._protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        """Return the protocol that gets what is decrypted."""
        return self._protocol

    def is_reading(self) -> bool:
        """Whether the transport below reads."""
        return self._below.is_reading()

    def pause_reading(self) -> None:
        """Read no more for now."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._below.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the protocol is told to pause, in encrypted bytes."""
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the encrypted bytes that the client has not taken."""
        return self._below.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return when the protocol is told to pause and to go on."""
        return self._below.get_write_buffer_limits()

    def can_write_eof(self) -> bool:
        """Return that half a connection cannot be closed."""
        return False

    def _flush(self) -> None:
        if encrypted := self._session.to_send():
            self._below.write(encrypted)


class _Below(asyncio.Protocol):
    """What the transport below tells goes to the transport above, or its protocol."""

    def __init__(self, above: TlsTransport) -> None:
        self._above = above

    def data_received(self, data: bytes) -> None:
        self._above.received(data)

    def eof_received(self) -> bool | None:
        return self._above.get_protocol().eof_received()

    def pause_writing(self) -> None:
        self._above.get_protocol().pause_writing()

    def resume_writing(self) -> None:
        self._above.get_protocol().resume_writing()

    def connection_lost(self, failure: Exception | None) -> None:
        self._above.get_protocol().connection_lost(failure)
