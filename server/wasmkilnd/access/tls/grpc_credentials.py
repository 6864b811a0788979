"""What a gRPC server makes TLS connections with."""

from __future__ import annotations

from typing import Any

import grpc

from wasmkilnd.access.tls.files import TlsFiles
from wasmkilnd.access.tls.material import TlsMaterial


def server_credentials(files: TlsFiles, *, client_certificates: bool) -> Any:
    """Return credentials for one address, which take what is in force at each handshake.

    With ``client_certificates``, a caller needs one that a client CA has signed.
    """
    given = files.current

    def configuration(material: TlsMaterial) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(material.key_pem, material.chain_pem)],
            material.client_ca_pem if client_certificates else None,
        )

    def changed() -> Any:
        # gRPC calls this in a thread of its own, one handshake at a time.
        nonlocal given
        current = files.current
        if current is given:
            return None
        made = configuration(current)
        given = current
        return made

    return grpc.dynamic_ssl_server_credentials(configuration(given), changed, client_certificates)
