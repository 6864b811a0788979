"""The options of every command that say how to reach the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from wasmkiln.cli.seconds import Seconds
from wasmkiln.cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    F = TypeVar("F", bound=Callable[..., Any])

# Of each option: what stands for its value, and its help. The last one is shown first.
_ACCESS: Mapping[str, tuple[str, str]] = {
    "namespace": ("NAME", "The caller's namespace, to find files of the host store."),
    "token_file": ("FILE", "The token that says who calls.  [default: $WASMKILN_TOKEN_FILE]"),
    "server_name": (
        "HOST",
        "The host that the daemon's certificate is for, if it is not that of the address.",
    ),
    "key_file": ("FILE", "The key of --cert-file.  [default: $WASMKILN_CLIENT_KEY_FILE]"),
    "cert_file": ("FILE", "A client certificate.  [default: $WASMKILN_CLIENT_CERT_FILE]"),
    "ca_file": ("FILE", "The CA of the daemon's certificate.  [default: $WASMKILN_CA_FILE]"),
    "profile": (
        "NAME",
        "A daemon in profiles.toml, instead of the environment.  [default: $WASMKILN_PROFILE]",
    ),
}


def _fill(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that puts an option's value into the Session."""

    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(context.ensure_object(Session), name, value)

    return callback


def json_option(command: F) -> F:
    """Add --json alone, for a command that calls no daemon."""
    return click.option(
        "--json",
        is_flag=True,
        default=None,
        expose_value=False,
        callback=_fill("as_json"),
        help="Print one JSON document on stdout instead of tables.",
    )(command)


def connection_options(command: F) -> F:
    """Add the options of the connection, --timeout and --json, which fill in the Session.

    The group has them and so has every command, so that a person may write them before or
    after the command's name.
    """
    for option in (
        json_option,
        click.option(
            "--timeout",
            type=Seconds(min_open=True),
            metavar="SECONDS",
            expose_value=False,
            callback=_fill("timeout_s"),
            help="Time limit of each call.  [default: $WASMKILN_TIMEOUT_S, else 60]",
        ),
        *(
            click.option(
                f"--{name.replace('_', '-')}",
                metavar=metavar,
                expose_value=False,
                callback=_fill(name),
                help=text,
            )
            for name, (metavar, text) in _ACCESS.items()
        ),
        click.option(
            "--tls/--no-tls",
            default=None,
            expose_value=False,
            callback=_fill("tls"),
            help="Speak TLS, by the system's CAs unless --ca-file says otherwise; or do not.",
        ),
        click.option(
            "--address",
            metavar="HOST:PORT",
            expose_value=False,
            callback=_fill("address"),
            help="The daemon; or unix:/path.  [default: $WASMKILN_ADDRESS, else 127.0.0.1:50051]",
        ),
    ):
        command = option(command)
    return command
