"""Whom the certificates that a caller sends beside its own vouch for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from wasmkilnd.access.tls import certificate_name
from wasmkilnd.errors import WasmkilnError

from tests.authority import Authority


def test_a_certificate_that_is_no_ca_vouches_for_nobody(tmp_path: Path) -> None:
    root, forger = Authority(tmp_path, path_length=None), Authority(tmp_path / "other", "client")
    between = root.client("client", dns="b.org")
    key: Any = serialization.load_pem_private_key(between.key, None)
    forger._key = key
    sent = forger.client("leaf", dns="a.org").cert + between.cert
    cas = x509.load_pem_x509_certificates(root.ca_file.read_bytes())
    assert certificate_name(between.cert, cas)[0] == "dns:b.org"
    with pytest.raises(WasmkilnError, match="none of the daemon's CAs"):
        certificate_name(sent, cas)
