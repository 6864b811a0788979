"""An authority of the tests' own, and a certificate that it signed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.authority import Authority


@dataclass(frozen=True)
class Certificates:
    """Files in PEM."""

    ca_file: Path
    cert_file: Path
    key_file: Path


def certificates(folder: Path) -> Certificates:
    """Make an authority in ``folder`` and a certificate for 127.0.0.1."""
    authority = Authority(folder)
    pair = authority.server(hosts=["127.0.0.1"])
    return Certificates(authority.ca_file, pair.cert_file, pair.key_file)
