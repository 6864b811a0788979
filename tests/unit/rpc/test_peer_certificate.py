"""What a call tells of its caller's certificate, over real TLS."""

from __future__ import annotations

import datetime
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc import aio
from wasmkilnd.access.tls import certificate_name
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Credentials, Entrance, Transport
from wasmkilnd.rpc.traffic import Call

DAY = datetime.timedelta(days=1)


class Signed:
    """A certificate, its key, and who signed it."""

    def __init__(
        self, name: str, by: Signed | None = None, *, ca: bool = False, dns: str = ""
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(by.certificate.subject if by else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if dns:
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), False)
        self.certificate: x509.Certificate = made.sign(by.key if by else self.key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        self.key_pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


ROOT = Signed("root", ca=True)
MIDDLE = Signed("middle", ROOT, ca=True)
SERVER = Signed("server", ROOT, dns="localhost")


async def sent(chain: bytes, key: bytes) -> Credentials:
    """Return the credentials of a call with a certificate."""
    found = []

    async def handle(_: bytes, context: Any) -> bytes:
        found.append(Call(context, Entrance(Transport.MTLS)).credentials())
        return b""

    server = aio.server()
    method = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": method}),))
    ours = grpc.ssl_server_credentials([(SERVER.key_pem, SERVER.pem)], ROOT.pem, True)
    port = server.add_secure_port("localhost:0", ours)
    await server.start()
    try:
        theirs = grpc.ssl_channel_credentials(ROOT.pem, key, chain)
        async with aio.secure_channel(f"localhost:{port}", theirs) as channel:
            await channel.unary_unary("/a.B/C")(b"", timeout=30)
    finally:
        await server.stop(0)
    return found[0]


async def test_certificates_between_the_callers_and_its_ca_come_along() -> None:
    leaf = Signed("leaf", MIDDLE, dns="a.org")
    credentials = await sent(leaf.pem + MIDDLE.pem, leaf.key_pem)
    name, until_s = certificate_name(credentials.certificate, [ROOT.certificate])
    assert name == "dns:a.org"
    chain = (leaf, MIDDLE, ROOT)
    assert until_s == min(each.certificate.not_valid_after_utc.timestamp() for each in chain)

    # The one between them does not sign in place of its CA.
    other = Signed("root", ca=True)
    with pytest.raises(WasmkilnError, match="none of the daemon's CAs"):
        certificate_name(credentials.certificate, [other.certificate])


async def test_a_certificate_right_below_its_ca() -> None:
    leaf = Signed("leaf", ROOT, dns="a.org")
    credentials = await sent(leaf.pem, leaf.key_pem)
    assert certificate_name(credentials.certificate, [ROOT.certificate])[0] == "dns:a.org"


def test_a_certificate_that_is_no_ca_vouches_for_nobody() -> None:
    middle = Signed("middle", ROOT)
    leaf = Signed("leaf", middle, dns="a.org")
    with pytest.raises(WasmkilnError, match="none of the daemon's CAs"):
        certificate_name(leaf.pem + middle.pem, [ROOT.certificate])
