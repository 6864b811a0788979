"""What a gRPC server makes TLS connections with."""

from __future__ import annotations

from typing import Any

import grpc

from wasmkilnd.access.tls.files import TlsFiles
from wasmkilnd.access.tls.material import TlsMaterial

LEAST_VERSION_ENV = "GRPC_SSL_CIPHER_SUITES"
"""gRPC has no setting for the lowest version of TLS. It reads this variable when it is imported."""
ONLY_TLS_1_3 = "ECDHE-PSK-AES128-CBC-SHA"
"""The one cipher suite for TLS 1.2 that no connection can use without a pre-shared key.

The suites of TLS 1.3 are not part of this list, and always there."""


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
