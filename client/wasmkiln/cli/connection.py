"""Options: those of every command, which say how to reach the daemon, and how all are declared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from wasmkiln.shared import is_digest

_YEAR_S = 365 * 24 * 3600


def _seconds(text: str) -> float:
    if 0 <= (number := float(text)) <= _YEAR_S:
        return number
    raise click.BadParameter(f"{text!r} is no number of seconds up to a year")


class _Module(click.Path):
    """A module's file, or the digest of one that the daemon has."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the text itself, or fail with a usage error."""
        if is_digest(value) and not Path(value).exists():
            return str(value)
        return str(super().convert(value, param, ctx))


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value


@contextmanager
def usage() -> Iterator[None]:
    """Turn a ValueError, as the client raises it for what it cannot use, into wrong usage."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


FILE = click.Path(exists=True, dir_okay=False, readable=True)
MODULE = _Module(exists=True, dir_okay=False, readable=True)
# By what stands for a value in a usage.
_TYPES: dict[str, Any] = {
    "ARTIFACT": FILE,
    "FILE...": FILE,
    "FILE|SHA256": MODULE,
    "FILE|SHA256...": MODULE,
    "NAME=VALUE...": _setting,
    "SECONDS": _seconds,
}


def parameters(
    text: str, common: dict[str, Any] | None = None, **more: Any
) -> list[click.Parameter]:
    """Return arguments and options, written as --help shows them, from the first column on.

    An argument is a name and what stands for it, in brackets if it may be left out. An option is
    flags, perhaps a parameter's name, what stands for a value, two spaces, and what it is. What
    stands for a value says its type; with dots, there may be several. `common` is click's for all
    options, `more` for those of these names.
    """
    found: list[click.Parameter] = []
    for entry in re.split(r"\n(?=\S)", text.strip()):
        head, _, told = entry.partition("  ")
        names = [word for word in head.split() if word.startswith("-") or word.islower()]
        metavar = " ".join(word for word in head.split() if word not in names)
        kind, several = _TYPES.get(metavar.strip("[]")), metavar.endswith("...")
        how: dict[str, Any] = {"metavar": metavar, "type": kind}
        if not names[0].startswith("-"):
            how |= {"nargs": -1 if several else 1, "required": metavar[0] != "["}
            found.append(click.Argument(names, **how))
            continue
        how |= {"metavar": metavar.removesuffix("..."), "multiple": several}
        if not metavar:
            how = {"is_flag": True, "default": None if "/--" in head else False}
        name = names[-1].partition("/")[0].lstrip("-").replace("-", "_")
        how |= (common or {}) | more.get(name, {})
        found.append(click.Option(names, help=" ".join(told.split()), **how))
    return found


def fill(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Put an option's value into the session; what stands after the command's name wins."""
    if value is not None and parameter.name:
        context.obj[parameter.name] = value


# The group has them and so has every command, so that a person may write them before or after
# the command's name.
EVERYWHERE = parameters(
    """
--address HOST:PORT       The daemon; or unix:/path.
                          [default: $WASMKILN_ADDRESS, else 127.0.0.1:50051]
--tls/--no-tls            Speak TLS, by the system's CAs unless --ca-file says otherwise; or do not.
--profile NAME            A daemon in profiles.toml, instead of the environment.
                          [default: $WASMKILN_PROFILE]
--ca-file FILE            The CA of the daemon's certificate.  [default: $WASMKILN_CA_FILE]
--cert-file FILE          A client certificate.  [default: $WASMKILN_CLIENT_CERT_FILE]
--key-file FILE           The key of --cert-file.  [default: $WASMKILN_CLIENT_KEY_FILE]
--server-name HOST        The host that the daemon's certificate is for, if it is not that of the
                          address.
--token-file FILE         The token that says who calls.  [default: $WASMKILN_TOKEN_FILE]
--namespace NAME          The caller's namespace, to find files of the host store.
--timeout timeout_s SECONDS  Time limit of each call.  [default: $WASMKILN_TIMEOUT_S, else 60]
--json as_json            Print one JSON document on stdout instead of tables.
-v --verbose              Tell on stderr what the client does: tries, tiers, bytes, time.
--debug                   Show the traceback of a defect of this command.
""",
    {"expose_value": False, "callback": fill, "default": None},
)
ARTIFACT = parameters(
    """
--engine ENGINE           Engine, e.g. wasmtime or wasmer-1.1.0.
--target TRIPLE           Target, e.g. x86_64-unknown-linux-gnu.
--cpu LEVEL               CPU level, e.g. x86-64-v3 or baseline.
--set settings NAME=VALUE...  A setting; repeat for more. `wasmkiln capabilities --settings` lists
                          them.
""",
    settings={"callback": lambda _, __, pairs: dict(pairs)},
)


def command(
    text: str = "", *params: click.Parameter, of: click.Group | None = None, **more: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function, which gets the Session and what its parameters say.

    One of a group has the group's name before its own.
    """

    def made(function: Callable[..., Any]) -> click.Command:
        own = parameters(text, **more) if text else []
        name = function.__name__.removeprefix(f"{of.name}_") if of else None
        make = of.command if of else click.command
        return make(name, params=[*own, *params, *EVERYWHERE])(click.pass_obj(function))

    return made
