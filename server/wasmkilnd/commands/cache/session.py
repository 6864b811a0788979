"""Open and close the cache for a ``wasmkilnd cache`` command; flags that several share."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from wasmkilnd.cache.host_store import HostOptions
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.shared_server import CannotOpenShared, where
from wasmkilnd.cache.value.names import KeyNames, namespace_prefix
from wasmkilnd.commands.as_owner import act_as_owner, settings_of
from wasmkilnd.config.flags import Decorator, some_options
from wasmkilnd.config.load import FlagValue
from wasmkilnd.config.schema import Settings
from wasmkilnd.config.values.quantity import parse_bytes, parse_seconds
from wasmkilnd.config.values.types import NO_DIRECTORY
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.maintenance.connect import open_link
from wasmkilnd.model import DEFAULT_NAMESPACE, NAMESPACE_NAME
from wasmkilnd.options import host_options, remote_options
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.signing.keys import read_keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.logs import pipeline

T = TypeVar("T")

HELP = {"help_option_names": ["-h", "--help"]}

_WHERE = ("state_dir", "keys_dir", "trusted_keys", "embedded_redis_bytes", "cache_ttl_s")


class CacheCommandFailed(Exception):  # noqa: N818 - says what happened
    """The command failed; the message says why and what to do."""


class BadValuesFound(Exception):  # noqa: N818 - an answer
    """The command succeeded and found bad values; the message says how many."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command finds the cache."""

    flags: Mapping[str, FlagValue]
    config: Path | None
    namespace: str = DEFAULT_NAMESPACE


@dataclass(frozen=True, slots=True)
class Session:
    """An open cache."""

    settings: Settings
    link: GuardedRedis
    names: KeyNames
    verifier: Sealer

    def require_trust(self) -> None:
        """Raise CacheCommandFailed if no key is trusted, since no value could verify."""
        _require_trust(self.verifier, self.settings)


@dataclass(frozen=True, slots=True)
class HostSession:
    """The host store's place, and who is trusted."""

    settings: Settings
    options: HostOptions
    verifier: Sealer

    def require_trust(self) -> None:
        """Raise CacheCommandFailed if no key is trusted, since no entry could verify."""
        _require_trust(self.verifier, self.settings)


def tier_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--tier`` to a command, which receives ``on_host``."""
    return click.option(
        "--tier",
        "on_host",
        type=click.Choice(["redis", "host_store"]),
        default="redis",
        show_default=True,
        callback=lambda context, parameter, value: value == "host_store",
        help="The cache that daemons share in Redis, or the host store of this machine.",
    )(command)


def where_options(*more: str) -> Decorator:
    """Return a decorator that adds the flags that locate the cache, and those of ``more``.

    The command receives ``place``.
    """
    places = ("redis_", "host_store_")
    settings = some_options(lambda field: field in (*_WHERE, *more) or field.startswith(places))

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_place(*args: Any, **given: Any) -> Any:
            place = Place(given.pop("flags"), given.pop("config"), given.pop("namespace"))
            settings_of(place.flags, place.config)  # Acts as the owner before it opens a file.
            return command(*args, place=place, **given)

        return click.option(
            "--namespace",
            default="",
            callback=_namespace,
            metavar="NAME",
            help="The namespace whose values it is about.  [default: the default namespace]",
        )(settings(with_place))

    return decorate


def _require_trust(verifier: Sealer, settings: Settings) -> None:
    if not verifier.keys.trusted:
        raise CacheCommandFailed(
            f"cannot verify any value: no key is trusted here, and there is none in"
            f" {settings.effective_keys_dir} (set --keys-dir or WASMKILN_TRUSTED_KEYS)"
        )


def rate_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--rate`` to a command, which receives it as bytes a second, 0 for no limit."""
    return click.option(
        "--rate",
        "bytes_per_s",
        default="0",
        callback=_rate,
        metavar="SIZE",
        help="Bytes a second to move at most, such as 20MiB, so that others who use the"
        " server are not disturbed.  [default: no limit]",
    )(command)


def duration_option(flag: str, name: str, default: str, text: str) -> Decorator:
    """Return what adds an option to a command, which receives it in seconds."""
    return click.option(
        flag, name, default=default, callback=_seconds, metavar="DURATION", help=text
    )


def run(
    place: Place,
    work: Callable[[Session], Awaitable[T]],
    *,
    make: bool = False,
) -> T:
    """Run ``work`` on the cache that a daemon of this configuration uses; return its result.

    With ``make``, create the embedded server if there never was one. Raises ConfigError,
    KeysUnusable and CacheCommandFailed.
    """
    settings, verifier = _prepared(place)
    options = remote_options(Reloadable(settings))

    async def with_cache() -> T:
        async with open_link(options, make=make) as link:
            names = KeyNames(namespace_prefix(settings.redis_prefix, place.namespace))
            return await work(Session(settings, link, names, verifier))

    try:
        return asyncio.run(with_cache())
    except CannotOpenShared as failure:
        raise CacheCommandFailed(str(failure)) from None
    except TierUnavailable as failure:
        raise CacheCommandFailed(f"{where(options)}: {failure}") from None


def run_on_host(
    place: Place,
    work: Callable[[HostSession], T],
) -> T:
    """Run ``work`` on the host store of this configuration; return its result.

    Raises ConfigError, KeysUnusable and CacheCommandFailed.
    """
    settings, verifier = _prepared(place)
    options = host_options(settings)
    options = options.of_namespace(place.namespace, options.limit_bytes)
    act_as_owner(options.directory)
    if not options.limit_bytes:
        is_none = settings.host_store_dir == NO_DIRECTORY
        why = "host_store_dir is none" if is_none else "host_store_bytes is 0"
        raise CacheCommandFailed(f"this configuration has no host store: {why}")
    if not options.directory.is_dir():
        raise CacheCommandFailed(
            f"there is no host store yet in {options.directory} (choose another directory with"
            " --host-store-dir)"
        )
    try:
        return work(HostSession(settings, options, verifier))
    except TierUnavailable as failure:
        raise CacheCommandFailed(str(failure)) from None


def _prepared(place: Place) -> tuple[Settings, Sealer]:
    settings = settings_of(place.flags, place.config)
    # Only errors: the command prints what an operator needs.
    pipeline.configure("text", "error", sys.stderr)
    signal.signal(signal.SIGTERM, _interrupted)
    return settings, Sealer(read_keys(settings))


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    # As Ctrl-C, so that unfinished work is undone.
    raise KeyboardInterrupt


def _namespace(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not NAMESPACE_NAME.fullmatch(value):
        raise click.BadParameter("expected 1 to 63 lowercase letters, digits or hyphens")
    return value


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _rate(context: click.Context, parameter: click.Parameter, value: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
