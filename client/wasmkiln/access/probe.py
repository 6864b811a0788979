"""A short connection to a daemon, made by Python's own `ssl`, to see what goes wrong there."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wasmkiln.access.tls import TLS

# What a client of HTTP/2 sends first, and the type of the frame that a server sends first.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME_HEADER_BYTES, _TYPE_AT, _SETTINGS = 9, 3, 4


@dataclass(frozen=True)
class Probe:
    """Connects to one host and port, for `timeout_s` seconds in all."""

    host: str
    port: int
    ends_s: float

    @classmethod
    def within(cls, timeout_s: float, host: str, port: int) -> Probe:
        """Return a probe that gives up after `timeout_s` seconds."""
        return cls(host, port, time.monotonic() + timeout_s)

    def speaks_tls(self) -> bool:
        """Return whether TLS is spoken there, with whatever certificate. Raise OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        with self._connected() as connection:
            try:
                with context.wrap_socket(connection):
                    return True
            except ssl.SSLError as error:
                # An alert is said by somebody who speaks TLS.
                return "ALERT" in (error.reason or "")
            except ConnectionError:
                return False

    def speaks_plaintext(self) -> bool:
        """Return whether HTTP/2 is spoken there without TLS. Raise OSError."""
        with self._connected() as connection:
            connection.sendall(_PREFACE)
            return _are_settings(connection.recv(_FRAME_HEADER_BYTES))

    def greets(self, tls: TLS) -> bool:
        """Return whether a daemon there begins to speak HTTP/2 over TLS with these files.

        Raise OSError: an ssl.SSLError where the handshake fails, or the daemon sends an alert.
        """
        with (
            self._connected() as connection,
            _context(tls).wrap_socket(
                connection, server_hostname=tls.server_name or self.host
            ) as secure,
        ):
            # By now TLS 1.3 has not told yet what the daemon makes of the client's certificate.
            try:
                return _are_settings(secure.recv(_FRAME_HEADER_BYTES))
            except (ssl.SSLEOFError, ConnectionError):
                return False

    def certificate_names(self, tls: TLS) -> list[str]:
        """Return the hosts that the daemon's certificate is for. Raise OSError."""
        context = _context(tls)
        context.check_hostname = False
        with self._connected() as connection, context.wrap_socket(connection) as secure:
            names = (secure.getpeercert() or {}).get("subjectAltName", ())
            return [_written(*map(str, pair)) for pair in names if len(pair) == 2]

    def _connected(self) -> socket.socket:
        remaining_s = max(0.001, self.ends_s - time.monotonic())
        return socket.create_connection((self.host, self.port), remaining_s)


def _written(kind: str, name: str) -> str:
    """Return a name as people write it: OpenSSL writes each group of an IPv6 address."""
    try:
        return str(ipaddress.ip_address(name.strip())) if kind == "IP Address" else name
    except ValueError:
        return name


def _context(tls: TLS) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if tls.authorities:
        context.load_verify_locations(tls.authorities)
    if tls.own_files:
        context.load_cert_chain(*tls.own_files, password="")
    return context


def _are_settings(frame: bytes) -> bool:
    return len(frame) > _TYPE_AT and frame[_TYPE_AT] == _SETTINGS
