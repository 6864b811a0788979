"""``wasmkilnd tls``: make certificates for a first try of TLS."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

import click

from wasmkilnd.access.tls.first_try import FirstTry, make
from wasmkilnd.commands.as_owner import act_as_owner, settings_of

_HELP = {"help_option_names": ["-h", "--help"]}
_HERE = ("localhost", "127.0.0.1", "::1")


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
    files = make(folder, (*_HERE, socket.gethostname(), *hosts), client, days)
    click.echo(f"made a CA, a server certificate and a client certificate in {files.folder}")
    for what, command in commands(files, "localhost"):
        click.echo(f"\n{what}:\n  {command}")


def commands(files: FirstTry, host: str) -> Sequence[tuple[str, str]]:
    """Return one command to serve, and one for each way to call."""
    ca = str(files.ca)
    cert, key = str(files.cert("client")), str(files.key("client"))
    server = (str(files.cert("server")), str(files.key("server")))
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
