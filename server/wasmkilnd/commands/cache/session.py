"""Open and close the cache for a ``wasmkilnd cache`` command; flags that several share."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from wasmkilnd.cache.open_shared import CannotOpenShared, where
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.config.flags import Decorator, some_options
from wasmkilnd.config.load import FlagValue, load
from wasmkilnd.config.schema import Settings
from wasmkilnd.config.values.quantity import parse_bytes, parse_seconds
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.maintenance.connect import open_link
from wasmkilnd.options import remote_options
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.signing.ring import TrustRing, open_trust
from wasmkilnd.signing.sealer import DsseVerifier
from wasmkilnd.telemetry.logs import pipeline

T = TypeVar("T")

HELP = {"help_option_names": ["-h", "--help"]}

_WHERE = ("state_dir", "keys_dir", "trusted_keys", "embedded_redis_bytes", "cache_ttl_s")


class CacheCommandFailed(Exception):  # noqa: N818 - says what happened
    """The command failed; the message says why and what to do."""


class BadValuesFound(Exception):  # noqa: N818 - an answer
    """The command succeeded and found bad values; the message says how many."""


@dataclass(frozen=True, slots=True)
class Session:
    """An open cache."""

    settings: Settings
    link: GuardedRedis
    names: KeyNames
    trust: TrustRing
    verifier: DsseVerifier

    def require_trust(self) -> None:
        """Raise CacheCommandFailed if no key is trusted, since no value could verify."""
        if not self.trust.trusted:
            raise CacheCommandFailed(
                f"cannot verify any value: no key is trusted here, and there is none in"
                f" {self.settings.effective_keys_dir} (set --keys-dir or WASMKILN_TRUSTED_KEYS)"
            )


def where_options(*more: str) -> Decorator:
    """Return a decorator that adds the flags that locate the cache, and those of ``more``."""
    return some_options(lambda field: field in (*_WHERE, *more) or field.startswith("redis_"))


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
    flags: Mapping[str, FlagValue],
    config: Path | None,
    work: Callable[[Session], Awaitable[T]],
    *,
    make: bool = False,
) -> T:
    """Run ``work`` on the cache that a daemon of this configuration uses; return its result.

    With ``make``, create the embedded server if there never was one. Raises ConfigError,
    KeysUnusable and CacheCommandFailed.
    """
    settings = load(flags, os.environ, config).settings
    # Only errors: the command prints what an operator needs.
    pipeline.configure("text", "error", sys.stderr)
    signal.signal(signal.SIGTERM, _interrupted)
    trust = open_trust(
        settings.effective_keys_dir,
        settings.signing_key.get_secret_value(),
        settings.trusted_keys,
    )
    options = remote_options(Reloadable(settings))

    async def with_cache() -> T:
        async with open_link(options, make=make) as link:
            names = KeyNames(settings.redis_prefix)
            return await work(Session(settings, link, names, trust, DsseVerifier(trust)))

    try:
        return asyncio.run(with_cache())
    except CannotOpenShared as failure:
        raise CacheCommandFailed(str(failure)) from None
    except TierUnavailable as failure:
        raise CacheCommandFailed(f"{where(options)}: {failure}") from None


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    # As Ctrl-C, so that unfinished work is undone.
    raise KeyboardInterrupt


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
