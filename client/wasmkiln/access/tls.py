"""TLS to a daemon: which CA is trusted, and the client's own certificate."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from wasmkiln.access.files import Stamp, read_small, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where Linux distributions keep the system's CAs, if Python does not know.
_SYSTEM_CAS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True)
class TLS:
    """How to speak TLS with a daemon. The files are PEM, and read again when they change.

    `ca_file` has the CAs that may sign the daemon's certificate; without it, those of the
    system. `cert_file` and `key_file` are this client's own certificate, with its chain, and
    its key without a password, for daemons that ask for one. `server_name` is the name that the
    daemon's certificate has to be for, where that is not the address's host.
    """

    ca_file: str | os.PathLike[str] = ""
    cert_file: str | os.PathLike[str] = ""
    key_file: str | os.PathLike[str] = ""
    server_name: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for one of `cert_file` and `key_file` without the other."""
        if bool(os.fspath(self.cert_file)) != bool(os.fspath(self.key_file)):
            given, missing = ("key", "cert") if self.key_file else ("cert", "key")
            raise ValueError(
                f"a client certificate needs both files: {given}_file is given, and "
                f"{missing}_file is missing"
            )

    @property
    def authorities(self) -> str:
        """The file with the trusted CAs; empty where the system has none that is known."""
        if self.ca_file:
            return _expanded(self.ca_file)
        known = os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile
        return next((each for each in (*known, *_SYSTEM_CAS) if each and Path(each).exists()), "")

    @property
    def own_files(self) -> tuple[str, str] | None:
        """The client's own certificate and key; None without."""
        if not self.cert_file:
            return None
        return _expanded(self.cert_file), _expanded(self.key_file)

    def stamps(self) -> tuple[Stamp, ...]:
        """Return what changes when one of the files does. Raise OSError."""
        return tuple(stamp_of(path) for path in self._paths())

    def credentials(self) -> Any:
        """Read the files and return credentials for a channel.

        Raise OSError when a file cannot be read, and ValueError when it is not what it should be.
        """
        ca_file, own = self.authorities, self.own_files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        roots = key = chain = None
        if ca_file:
            roots = read_small(ca_file)
            try:
                context.load_verify_locations(cadata=roots.decode("ascii", "replace"))
            except (ssl.SSLError, ValueError):
                raise ValueError(
                    f"cannot use {ca_file}: expected certificates of CAs in PEM"
                ) from None
        if own:
            chain, key = (read_small(path) for path in own)
            _check_own(context, *own)
        return grpc.ssl_channel_credentials(roots, key, chain)

    def _paths(self) -> Iterator[str]:
        if ca_file := self.authorities:
            yield ca_file
        yield from self.own_files or ()


def _check_own(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    """Raise ValueError unless the files are a certificate and its key."""
    try:
        # An empty password: otherwise OpenSSL would ask for one at the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        why = (
            "the key is not that of the certificate"
            if error.reason == "KEY_VALUES_MISMATCH"
            else "expected a certificate and its key in PEM, the key without a password"
        )
        raise ValueError(f"cannot use {cert_file} with {key_file}: {why}") from None
    except ValueError:
        raise ValueError(f"cannot use {key_file}: the key has a password") from None


def _expanded(path: str | os.PathLike[str]) -> str:
    return str(Path(path).expanduser())
