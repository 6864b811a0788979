"""``wasmkilnd token``: make, list and revoke the tokens with which callers say who they are."""

from __future__ import annotations

from collections.abc import Sequence

import click

from wasmkilnd.access.tokens import Token, TokenStore
from wasmkilnd.commands.shared import (
    as_time,
    audit_change,
    json_option,
    print_rows,
    say,
    with_settings,
)
from wasmkilnd.model import DEFAULT_NAMESPACE, Role
from wasmkilnd.settings import Settings, parse_seconds

_settings = with_settings("state_dir", "tokens_file")
_ROLE = click.Choice([role.value for role in Role])


def _lifetime(context: click.Context, parameter: click.Parameter, value: str) -> float | None:
    if not value:
        return None
    try:
        seconds = parse_seconds(value)
        if not 0 < seconds <= 10 * 366 * 86400:
            raise ValueError(f"{value!r} is not allowed: write more than 0 and at most 10 years")
    except ValueError as mistake:
        raise click.BadParameter(str(mistake)) from None
    return seconds


@click.group()
def token() -> None:
    """Make, list and revoke the tokens with which callers say who they are.

    Callers send one as the metadata `authorization: Bearer TOKEN`. As soon as there has been a
    token, the daemon lets in nobody without an identity. A running daemon notices a change
    within seconds, and at once on SIGHUP.
    """


@token.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, type=_ROLE, help="What it may do.")
@click.option("--namespace", default=DEFAULT_NAMESPACE, help="Whose caches it uses.")
@click.option("--expires", default="", callback=_lifetime, help="After how long, as in 30d.")
@_settings
def add(
    settings: Settings, name: str, roles: Sequence[str], namespace: str, expires: float | None
) -> None:
    """Make a token, and print it: once, as it is kept nowhere.

    Repeat --role for more roles; compile includes read. A rule of the policy may give it another
    namespace. Without --expires it counts for ever. Several tokens may have one name. So replace a
    token without a gap: add the new one, hand it out, and revoke the old one by its id.
    """
    is_first = not settings.has_tokens_file
    text, made = _store(settings).add(name, map(Role, roles), namespace, expires)
    ends = as_time(made.expires) if made.expires else "never"
    of, told = ", ".join(_roles(made)), {"token": made.name, "id": made.id}
    audit_change(settings, "token_added", **told, roles=of, namespace=namespace)
    click.echo(text)
    say(
        f"token {made.name} (id {made.id}) has the roles {of}, expires {ends};"
        " keep it now: it is not shown again"
    )
    if is_first:
        say(
            f"this is the first token in {settings.effective_tokens_file}: from now on daemons that"
            " read this file let in nobody without an identity; other daemons of a fleet need it"
            " as their tokens_file"
        )


@token.command()
@json_option
@_settings
def ls(settings: Settings, as_json: bool) -> None:
    """List the tokens, without their secrets."""
    rows = [
        {**each.model_dump(exclude={"sha256"}), "roles": _roles(each)}
        for each in _store(settings).tokens()
    ]
    none = f"there is no token in {settings.effective_tokens_file}; make one with `token add`"
    print_rows(rows, none, as_json=as_json)


@token.command()
@click.argument("name_or_id", metavar="NAME|ID")
@_settings
def revoke(settings: Settings, name_or_id: str) -> None:
    """Forget a token, or all tokens of a name: no call gets in with them any more.

    A running daemon notices within seconds; send it SIGHUP to have it do so at once.
    """
    for gone in _store(settings).revoke(name_or_id):
        audit_change(settings, "token_revoked", token=gone.name, id=gone.id)
        click.echo(f"token {gone.name} (id {gone.id}) is revoked")


def _store(settings: Settings) -> TokenStore:
    return TokenStore(settings.effective_tokens_file)


def _roles(kept: Token) -> list[str]:
    return [role.value for role in Role if role in kept.roles]
