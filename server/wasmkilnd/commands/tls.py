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
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.commands.as_owner import act_as_owner, settings_of

_HELP = {"help_option_names": ["-h", "--help"]}
_HERE = ("localhost", "127.0.0.1", "::1")
_CA_DAYS = 3650
# A clock that is a little behind takes the certificates too.
_EARLIER = timedelta(minutes=5)


@click.group(context_settings=_HELP)
def tls() -> None:
    """Make certificates for a first try of TLS."""


@tls.command(context_settings=_HELP)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Where the files go.  [default: tls/ in the state directory]",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name or IP address of the server, besides localhost and this machine's name; may be"
    " repeated.",
)
@click.option(
    "--client",
    default="client",
    show_default=True,
    metavar="NAME",
    help="Whom the client certificate names: a DNS name, or a SPIFFE id such as"
    " spiffe://example.org/builder.",
)
@click.option(
    "--days",
    type=click.IntRange(1, 825),
    default=365,
    show_default=True,
    help="How long the certificates are valid. The CA is for ten years.",
)
@click.option(
    "--state-dir",
    default=None,
    metavar="DIR",
    help="The state directory.  [env: WASMKILN_STATE_DIR]",
)
def init(
    folder: Path | None, hosts: Sequence[str], client: str, days: int, state_dir: str | None
) -> None:
    """Make a CA, a server certificate and a client certificate, and say how to use them.

    No file is overwritten. Whoever has ca.key can make certificates that the daemon trusts: keep
    it secret, or delete it once you need no more of them.
    """
    if folder is None:
        folder = settings_of({"state_dir": state_dir} if state_dir else {}).state_dir / "tls"
    folder = folder.absolute()
    act_as_owner(next(each for each in (folder, *folder.parents) if each.exists()))
    make(folder, (*_HERE, socket.gethostname(), *hosts), client, days)
    click.echo(f"made a CA, a server certificate and a client certificate in {folder}")
    for what, command in commands(folder, "localhost"):
        click.echo(f"\n{what}:\n  {command}")


def commands(folder: Path, host: str) -> Sequence[tuple[str, str]]:
    """Return one command to serve, and one for each way to call."""
    ca, cert, key = (str(folder / name) for name in ("ca.pem", "client.pem", "client.key"))
    server = (str(folder / "server.pem"), str(folder / "server.key"))
    serve = ("--tls-cert-file", server[0], "--tls-key-file", server[1], "--tls-client-ca-file", ca)
    ours = ("--ca-file", ca, "--cert-file", cert, "--key-file", key)
    grpcurl = ("-cacert", ca, "-cert", cert, "-key", key)
    curl = ("--cacert", ca, "--cert", cert, "--key", key)
    return [
        ("serve", shlex.join(["wasmkilnd", "serve", *serve])),
        ("call", shlex.join(["wasmkiln", "--address", f"{host}:50051", *ours, "engines"])),
        ("call with grpcurl", shlex.join(["grpcurl", *grpcurl, f"{host}:50051", "list"])),
        ("read with curl", shlex.join(["curl", *curl, f"https://{host}:9464/readyz"])),
    ]


def make(folder: Path, hosts: Sequence[str], client: str, days: int) -> None:
    """Make certificates and keys: ``ca.pem``, ``ca.key``, and those of ``server`` and ``client``.

    They are valid for ``days``, the CA for ten years. ``client`` is a SPIFFE id or a DNS name.
    Raises AccessUnusable, also where a file exists.
    """
    server, named = [_host(host) for host in dict.fromkeys(hosts)], [_name(client)]
    signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for who in ("ca", "server", "client"):
            for path in (folder / f"{who}.pem", folder / f"{who}.key"):
                if os.path.lexists(path):
                    raise AccessUnusable(f"{path} exists already: choose another folder with --dir")
        ca = _make(folder / "ca", _CA_DAYS, [signs])
        for who, names, purpose in (
            ("server", server, ExtendedKeyUsageOID.SERVER_AUTH),
            ("client", named, ExtendedKeyUsageOID.CLIENT_AUTH),
        ):
            said = [x509.ExtendedKeyUsage([purpose]), x509.SubjectAlternativeName(names)]
            _make(folder / who, days, said, ca)
    except OSError as failure:
        where = failure.filename or folder
        raise AccessUnusable(f"cannot make {where}: {failure.strerror}") from None


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
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
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
    signed = made.sign(signing_key, hashes.SHA256())
    files = {".pem": (as_pem([signed]), 0o644), ".key": (private_pem(key), 0o600)}
    for kind, (content, mode) in files.items():
        with open(path.with_suffix(kind), "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(content)
    return name, key


def _host(text: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    return _name(text)


def _name(text: str) -> x509.GeneralName:
    try:
        kind, _, host = peer_name(text).partition(":")
    except ValueError:
        raise AccessUnusable(
            f"cannot make a certificate for {text!r}: write a DNS name, an IP address, or a SPIFFE"
            " id such as spiffe://example.org/builder"
        ) from None
    return x509.DNSName(host) if kind == "dns" else x509.UniformResourceIdentifier(text)
