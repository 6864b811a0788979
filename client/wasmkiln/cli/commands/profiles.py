"""`wasmkiln profiles`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wasmkiln.access.profiles import profiles_file, read_profiles
from wasmkiln.cli.connection_options import json_option
from wasmkiln.cli.grid import Grid

if TYPE_CHECKING:
    from wasmkiln.cli.session import Session


@click.command()
@json_option
@click.pass_obj
def profiles(session: Session) -> None:
    """List the profiles that --profile takes. Calls no daemon."""
    try:
        found = read_profiles()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    table = Grid("profile", "daemon", "TLS", "certificate", "token file", "namespace")
    documents = []
    for each in found:
        certificate = str(each.tls.cert_file) if each.tls else ""
        table.row(
            *(each.name, each.address, "yes" if each.tls else "no", certificate or "-"),
            *(each.token_file or "-", each.namespace or "the default one"),
        )
        documents.append(
            {
                "name": each.name,
                "address": each.address,
                "tls": each.tls is not None,
                "cert_file": certificate,
                "token_file": each.token_file,
                "namespace": each.namespace,
            }
        )
    session.emit({"file": str(profiles_file()), "profiles": documents}, table.shown())
