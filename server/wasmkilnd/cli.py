"""The ``wasmkilnd`` command: parse, load the configuration, run; and all exit codes."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import structlog

from wasmkilnd.access.show import shown
from wasmkilnd.access.tls.first_try import CannotMakeFiles
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.commands.as_owner import acting
from wasmkilnd.commands.cache import cache
from wasmkilnd.commands.cache.session import BadValuesFound, CacheCommandFailed
from wasmkilnd.commands.engine import engine
from wasmkilnd.commands.keys import keys
from wasmkilnd.commands.tls import tls
from wasmkilnd.commands.token import token
from wasmkilnd.config import show
from wasmkilnd.config.flags import options
from wasmkilnd.config.load import ConfigError, FlagValue, load
from wasmkilnd.engines.install.command import EngineInstallError
from wasmkilnd.lifecycle.check_config import check
from wasmkilnd.lifecycle.listening import restart_for_tls
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.ownership import NotOurs
from wasmkilnd.run import run
from wasmkilnd.signing.files import KeysUnusable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_FOUND = 3
EXIT_INTERRUPTED = 130

_FAILURES = (
    AccessUnusable,
    CannotMakeFiles,
    EngineInstallError,
    KeysUnusable,
    CacheCommandFailed,
    CannotStart,
    NotOurs,
)
_HELP = {"help_option_names": ["-h", "--help"]}


def main() -> None:
    """Run the command. Print every failure as one sentence on standard error."""
    try:
        command(prog_name="wasmkilnd", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(EXIT_USAGE)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output closed it. Python would complain again when it flushes
        # standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ConfigError as mistake:
        _fail(str(mistake), EXIT_USAGE)
    except _FAILURES as failure:
        _fail(str(failure), EXIT_FAILED)
    except BadValuesFound as found:
        _fail(str(found), EXIT_FOUND)
    except Exception as defect:
        structlog.get_logger("wasmkilnd").exception("the daemon failed")
        _fail(f"the daemon failed ({type(defect).__name__}): this is a defect", EXIT_FAILED)


@click.group(context_settings=_HELP)
@click.version_option(version("wasmkiln"), prog_name="wasmkilnd")
def command() -> None:
    """Validate, compile and cache WebAssembly modules for services in any language."""


@command.command(context_settings=_HELP)
@options
def serve(flags: Mapping[str, FlagValue], config: Path | None) -> None:
    """Serve in the foreground until SIGTERM or Ctrl-C."""
    read = partial(load, flags, os.environ, config)
    loaded = read()
    restart_for_tls(loaded.settings)
    asyncio.run(run(loaded, read))


@command.command(name="config", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
@click.option("--reference", is_flag=True, help="Print the documentation of every setting.")
@options
def show_config(
    flags: Mapping[str, FlagValue], config: Path | None, as_json: bool, reference: bool
) -> None:
    """Print every setting, where its value came from, and who may do what.

    Exit with 2, and the sentence that `serve` would end with, for what it could not use: keys,
    certificates, passwords, tokens, engines, addresses.
    """
    if reference:
        click.echo(show.reference(), nl=False)
        return
    loaded = load(flags, os.environ, config)
    try:
        sources = check(loaded.settings, version("wasmkiln"))
    except _FAILURES as failure:
        raise ConfigError(str(failure)) from None
    if as_json:
        click.echo(show.as_json(loaded))
    else:
        click.echo(f"{show.render(loaded)}{shown(sources)}")


command.add_command(engine)
command.add_command(keys)
command.add_command(cache)
command.add_command(token)
command.add_command(tls)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    if (whom := acting()) and os.strerror(errno.EACCES) in message:
        click.echo(f"note: {whom.note}", err=True)
    sys.exit(code)
