"""Run the daemon's command once more where gRPC would speak a version of TLS that is too low.

gRPC decides that when it is imported. So this comes first, and imports little.
"""

from __future__ import annotations

import os
import sys

from wasmkilnd.settings import Settings

_LEAST_VERSION_ENV = "GRPC_SSL_CIPHER_SUITES"
"""gRPC has no setting for the lowest version of TLS. It reads this variable when it is imported."""
_ONLY_TLS_1_3 = "ECDHE-PSK-AES128-CBC-SHA"
"""The one cipher suite for TLS 1.2 that no connection can use without a pre-shared key.

The suites of TLS 1.3 are not part of this list, and always there."""


def restart_for_tls(settings: Settings) -> None:
    """Run this command again, in this process, if the settings ask for TLS 1.3."""
    if not settings.tls_cert_file or settings.tls_min_version != "1.3":
        return
    if os.environ.get(_LEAST_VERSION_ENV) == _ONLY_TLS_1_3:
        return
    environ = {**os.environ, _LEAST_VERSION_ENV: _ONLY_TLS_1_3}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606
