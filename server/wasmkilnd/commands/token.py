"""``wasmkilnd token``: make, list and revoke the tokens with which callers say who they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from wasmkilnd.access.tokens import Token, TokenStore
from wasmkilnd.commands.as_owner import settings_of
from wasmkilnd.commands.audited import audit_command
from wasmkilnd.model import DEFAULT_NAMESPACE, Role
from wasmkilnd.setting_values import parse_seconds
from wasmkilnd.settings import Settings

_HELP = {"help_option_names": ["-h", "--help"]}
_MOST_S = 10 * 366 * 86400


class _Lifetime(click.ParamType):  # type: ignore[type-arg]  # in newer versions of click only
    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            seconds = parse_seconds(value)
        except ValueError as mistake:
            self.fail(str(mistake), param, ctx)
        if not 0 < seconds <= _MOST_S:
            self.fail(f"{value!r} is not allowed: write more than 0 and at most 10 years")
        return seconds


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state-dir",
        type=str,
        default=None,
        metavar="DIR",
        help="The state directory, which contains access/.  [env: WASMKILN_STATE_DIR]",
    )(command)


@click.group(context_settings=_HELP)
def token() -> None:
    """Make, list and revoke the tokens with which callers say who they are.

    Callers send one as the metadata `authorization: Bearer TOKEN`. As soon as there has been a
    token, the daemon lets in nobody without an identity. A running daemon notices a change
    within seconds, and at once on SIGHUP.
    """


@token.command(context_settings=_HELP)
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([role.value for role in Role]),
    help="What it may do; repeat it for more. compile includes read.",
)
@click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    help="Whose caches it uses, unless a rule of the policy says otherwise.",
)
@click.option(
    "--expires",
    type=_Lifetime(),
    default=None,
    help="How long it counts, as in 30d; default: for ever.",
)
@_where
def add(
    name: str,
    roles: Sequence[str],
    namespace: str,
    expires: float | None,
    state_dir: str | None,
) -> None:
    """Make a token, and print it: once, as it is kept nowhere.

    Several tokens may have one name. So replace a token without a gap: add the new one, hand it
    out, and revoke the old one by its id.
    """
    settings = _settings(state_dir)
    store = TokenStore(settings.tokens_file)
    first = not settings.has_tokens_file
    text, made = store.add(name, map(Role, roles), namespace, expires)
    audit_command(
        settings,
        "token_added",
        token=made.name,
        id=made.id,
        roles=_roles(made),
        namespace=namespace,
    )
    click.echo(text)
    click.echo(
        f"token {made.name} (id {made.id}) has the roles {_roles(made)}, expires"
        f" {_time(made.expires)}; keep it now: it is not shown again",
        err=True,
    )
    if first:
        click.echo(
            f"this is the first token in {store.file}: from now on the daemon of this state"
            " directory lets in nobody without an identity",
            err=True,
        )


@token.command(name="ls", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_where
def list_tokens(as_json: bool, state_dir: str | None) -> None:
    """List the tokens, without their secrets."""
    store = _store(state_dir)
    tokens = store.tokens()
    if as_json:
        click.echo(json.dumps([_row(each) for each in tokens], indent=2))
        return
    now_s = time.time()
    if tokens:
        click.echo(
            f"{'id':<12}  {'name':<20}  {'roles':<26}  {'namespace':<16}  {'made':<17}  expires"
        )
    for each in tokens:
        expires = _time(each.expires) + (" (expired)" if each.expired(now_s) else "")
        click.echo(
            f"{each.id}  {each.name:<20}  {_roles(each):<26}  {each.namespace or '-':<16}"
            f"  {_time(each.created)}  {expires}"
        )
    if not tokens:
        click.echo(f"there is no token in {store.file}; make one with `token add`", err=True)


@token.command(context_settings=_HELP)
@click.argument("name_or_id", metavar="NAME|ID")
@_where
def revoke(name_or_id: str, state_dir: str | None) -> None:
    """Forget a token, or all tokens of a name: no call gets in with them any more.

    A running daemon notices within seconds; send it SIGHUP to have it do so at once.
    """
    settings = _settings(state_dir)
    for gone in TokenStore(settings.tokens_file).revoke(name_or_id):
        audit_command(settings, "token_revoked", token=gone.name, id=gone.id)
        click.echo(f"token {gone.name} (id {gone.id}) is revoked")


def _store(state_dir: str | None) -> TokenStore:
    return TokenStore(_settings(state_dir).tokens_file)


def _settings(state_dir: str | None) -> Settings:
    return settings_of({"state_dir": state_dir} if state_dir else {})


def _roles(kept: Token) -> str:
    return ", ".join(role.value for role in Role if role in kept.roles)


def _time(seconds: int | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"


def _row(kept: Token) -> dict[str, Any]:
    return {
        "id": kept.id,
        "name": kept.name,
        "roles": [role.value for role in Role if role in kept.roles],
        "namespace": kept.namespace,
        "created": kept.created,
        "expires": kept.expires,
    }
