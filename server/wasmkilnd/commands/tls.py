"""``wasmkilnd tls``: make certificates for a first try of TLS."""

from __future__ import annotations

import ipaddress
import os
import shlex
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wasmkilnd.access.tls import as_pem, peer_name, private_pem
from wasmkilnd.commands.shared import with_settings
from wasmkilnd.files.operator_files import CannotUse
from wasmkilnd.files.ownership import make_folder
from wasmkilnd.settings import Settings

_HERE = ("localhost", "127.0.0.1", "::1")
_SIGNS = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
_MADE = """\
made a CA, a server certificate and a client certificate in {0}

serve:
  wasmkilnd serve --tls-cert-file {0}/server.pem --tls-key-file {0}/server.key \
--tls-client-ca-file {0}/ca.pem

call:
  wasmkiln --address localhost:50051 --ca-file {0}/ca.pem --cert-file {0}/client.pem \
--key-file {0}/client.key engines"""


@click.group()
def tls() -> None:
    """Make certificates for a first try of TLS."""


@tls.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where the files go.")
@click.option("--host", "hosts", multiple=True, help="A further name or address of the server.")
@click.option("--client", default="client", show_default=True, help="A DNS name or SPIFFE id.")
@with_settings("state_dir")
def init(settings: Settings, folder: Path | None, hosts: Sequence[str], client: str) -> None:
    """Make a CA, a server certificate and a client certificate, and say how to use them.

    They go into tls/ in the state directory, or --dir; no file is overwritten. The server is called
    localhost, as this machine is, and as each --host says; the client as --client says, for example
    spiffe://example.org/builder. The CA is valid for ten years, the others for one. Whoever has
    ca.key can make certificates that the daemon trusts: keep it secret, or delete it.
    """
    folder = (folder or settings.state_dir / "tls").absolute()
    # Every name before anything is made.
    caller = [_name(client)]
    server = [_host(host) for host in dict.fromkeys((*_HERE, socket.gethostname(), *hosts))]
    make_folder(folder)
    ca = _make(folder / "ca", 3650, [_SIGNS])
    for name, sans, purpose in (
        ("server", server, ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", caller, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        said = [x509.ExtendedKeyUsage([purpose]), x509.SubjectAlternativeName(sans)]
        _make(folder / name, 365, said, ca)
    click.echo(_MADE.format(shlex.quote(str(folder))))


def _make(
    path: Path,
    days: int,
    extensions: Sequence[x509.ExtensionType],
    ca: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None,
) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    """Make a certificate and its key; return its name and the key. Without ``ca``, make a CA."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"wasmkiln first-try {path.name}")])
    issuer, signing_key = ca or (name, key)
    made = (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # For a clock that is a little behind.
        .not_valid_after(now + timedelta(days=days))
    )
    for extension in (
        x509.BasicConstraints(ca=ca is None, path_length=None if ca else 0),
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
        *extensions,
    ):
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        made = made.add_extension(extension, critical)
    pem = as_pem([made.sign(signing_key, hashes.SHA256())])
    for kind, content, mode in ((".pem", pem, 0o644), (".key", private_pem(key), 0o600)):
        with open(path.with_suffix(kind), "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(content)
    return name, key


def _host(text: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    return _name(text)


def _name(text: str) -> x509.GeneralName:
    """Return the name of a certificate. Raises CannotUse for one that the guard refuses."""
    try:
        kind, _, host = peer_name(text).partition(":")
    except ValueError:
        raise CannotUse(
            f"cannot make a certificate for {text!r}: write a DNS name, an IP address, or a SPIFFE"
            " id such as spiffe://example.org/builder"
        ) from None
    return x509.DNSName(host) if kind == "dns" else x509.UniformResourceIdentifier(text)
