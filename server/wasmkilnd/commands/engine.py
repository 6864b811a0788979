"""``wasmkilnd engine``: install, list and remove engines, and say what their names stand for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict

import click

from wasmkilnd.commands.as_owner import settings_of
from wasmkilnd.commands.running import processes, reload_option, take_in
from wasmkilnd.engines.install import KINDS, EngineInstallError, EngineStore, InstalledEngine
from wasmkilnd.engines.names import (
    DEFAULT,
    NameChoices,
    NameRecord,
    WarmOrder,
    WarmOrders,
    moved_to,
    name_of,
    resolve,
    to_record,
)
from wasmkilnd.lifecycle.running import running
from wasmkilnd.ownership import NotOurs
from wasmkilnd.settings import Settings
from wasmkilnd.usage import MAX_USES

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def engine() -> None:
    """Install, list and remove engines."""


_state_dir = click.option(
    "--state-dir", type=str, default=None, help="Where engines are.  [env: WASMKILN_STATE_DIR]"
)


@engine.command(context_settings=_HELP)
@click.argument("specs", nargs=-1, required=True, metavar="NAME[==VERSION]...")
@click.option("--python", default="", help="The interpreter to use, instead of searching.")
# It asked for what is done anyway now.
@click.option("--fetch-python", is_flag=True, hidden=True, expose_value=False)
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
    default=100,
    show_default=True,
    help="How many artifacts --warm-from compiles.",
)
@_state_dir
@reload_option
def install(
    specs: Sequence[str],
    python: str,
    keep_going: bool,
    sha256: Sequence[str],
    warm_from: str,
    top: int,
    state_dir: str | None,
    and_reload: bool,
) -> None:
    """Install engines, each in a virtual environment of its own.

    Without a version, install the one that this release was tested with. The wheels of tested
    versions are pinned by SHA-256; others are installed with a warning, or by --sha256. Where an
    engine finds no CPython that it runs in, uv fetches one.
    """
    for option, given in (("--sha256", sha256), ("--warm-from", warm_from)):
        if given and len(specs) > 1:
            raise click.UsageError(f"{option} is for one engine: install them one by one")
    settings = _settings(state_dir)
    names = _Names(settings)
    if warm_from:
        warm_from = names.find("warm from", warm_from).id
    installed = 0
    for spec in specs:
        try:
            done = names.store.install(spec, python, _report, sha256)
        except EngineInstallError as failure:
            if not keep_going:
                raise
            click.echo(f"warning: {failure}", err=True)
            continue
        installed += 1
        click.echo(f"{done.id} is installed ({done.python})", err=True)
        if warm_from:
            _order(settings, WarmOrder(done.id, warm_from, top))
        for each in _held_back(settings, done.id):
            click.echo(f"also after the warm-up {each}" if warm_from else each, err=True)
        kept = names.names.by_name.get(done.name, done.id)
        recorded = done.name in names.choices.recorded and done.name not in names.choices.aliases
        if recorded and kept != done.id and not warm_from:
            click.echo(
                f"{done.name} goes on to stand for {kept}: `wasmkilnd engine use {done.id}`"
                " changes that",
                err=True,
            )
    if not installed:
        raise EngineInstallError("cannot install any of the engines: see the warnings above")
    take_in(settings.state_dir, "serves what is new", and_reload=and_reload)


@engine.command(name="list", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_state_dir
def list_engines(as_json: bool, state_dir: str | None) -> None:
    """List the installed engines, newest versions first."""
    names = _Names(_settings(state_dir))
    if as_json:
        rows = [
            {"id": found.id, **asdict(found), "path": str(found.path), "names": names.of(found.id)}
            for found in names.installed
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for found in names.installed:
        called = f"  ({', '.join(names.of(found.id))})" if names.of(found.id) else ""
        click.echo(f"{found.id:<20} {found.python:<18} {found.path}{called}")
        try:
            found.check()
        except NotOurs as refusal:
            click.echo(f"{found.id} is not served: {refusal}", err=True)
    for folder in names.store.damaged():
        click.echo(f"damaged: {folder}; install that engine again", err=True)
    if not names.installed:
        known = ", ".join(f"{name}=={kind.default_version}" for name, kind in KINDS.items())
        click.echo(f"none is installed; run `wasmkilnd engine install`: {known}", err=True)


@engine.command(context_settings=_HELP)
@click.argument("engine_id", metavar="ENGINE")
@click.option("--force", is_flag=True, help="Also while a daemon runs, or if names stand for it.")
@_state_dir
@reload_option
def remove(engine_id: str, force: bool, state_dir: str | None, and_reload: bool) -> None:
    """Remove an installed engine, for example wasmtime-50.0.1.

    Reload the daemons that serve it right after: they finish its jobs, and end it. Its
    artifacts stay in the cache.
    """
    settings = _settings(state_dir)
    names, folder = _Names(settings), settings.state_dir
    found = names.find("remove", engine_id)
    engine_id = found.id
    if not force and (daemons := running(folder)):
        raise EngineInstallError(
            f"a daemon runs on this state directory ({processes(daemons)}): its callers may use"
            f" {engine_id}, and would get ENGINE_REMOVED. Once none asks for it, remove it with"
            " --force"
        )
    called = names.of(engine_id)
    # The last engine leaves no other to its callers.
    if not force and called and len(names.installed) > 1:
        raise EngineInstallError(
            f"{' and '.join(called)} stand{'s' if len(called) == 1 else ''} for {engine_id}:"
            " callers would get another engine. Choose that first, with `wasmkilnd engine use`,"
            " engine_alias or default_engine, or remove it with --force"
        )
    names.store.remove(found)
    WarmOrders(folder).remove(engine_id)
    with suppress(OSError):  # Then its callers get ENGINE_UNKNOWN after a restart.
        NameRecord(folder).write(names.choices.recorded, removed=engine_id)
    click.echo(f"{engine_id} is removed", err=True)
    take_in(folder, "ends it, after its jobs,", and_reload=and_reload)


@engine.command(context_settings=_HELP)
@click.argument("engine_id", metavar="ENGINE")
@click.option("--default", "as_default", is_flag=True, help="Also for requests that name none.")
@_state_dir
@reload_option
def use(engine_id: str, as_default: bool, state_dir: str | None, and_reload: bool) -> None:
    """Let an engine's name stand for ENGINE, for example wasmtime-50.0.1.

    Requests that name no engine follow, if they got another version of it before.
    """
    settings = _settings(state_dir)
    names, folder = _Names(settings), settings.state_dir
    engine_id = names.find("use", engine_id).id
    name = name_of(engine_id)
    then = "change it there, and reload the daemon"
    if name in settings.engine_aliases:
        raise EngineInstallError(f"engine_alias says what {name} stands for: {then}")
    if as_default and settings.default_engine:
        raise EngineInstallError(
            f"default_engine says what requests get that name no engine: {then}"
        )
    # What names stand for without a record stays, too.
    there = [*(each.id for each in names.installed), *(each.name for each in names.store.damaged())]
    now = to_record(names.choices, names.names, names.installed, there)
    record = moved_to(now, engine_id)
    if as_default:
        record[DEFAULT] = engine_id
    try:
        NameRecord(folder).write(record)
    except OSError as failure:
        where = failure.filename or folder
        raise EngineInstallError(f"cannot write {where}: {failure.strerror}") from None
    also = " and requests that name no engine" if record.get(DEFAULT) == engine_id else ""
    click.echo(f"{name}{also} will stand for {engine_id}", err=True)
    take_in(folder, "takes that over", and_reload=and_reload)


class _Names:
    """What names stand for, by what is installed: whether it works, only a daemon knows."""

    def __init__(self, settings: Settings) -> None:
        """Read it. Raises NotOurs."""
        self.store = EngineStore(settings.state_dir)
        self.installed = self.store.installed()
        recorded, _ = NameRecord(settings.state_dir).read()
        self.choices = NameChoices(settings.engine_aliases, settings.default_engine, recorded)
        self.names = resolve(self.choices, self.installed)

    def of(self, engine_id: str) -> list[str]:
        """Return what stands for an engine, in words."""
        found = [name for name, each in sorted(self.names.by_name.items()) if each == engine_id]
        return [*found, *(["the default"] if self.names.default == engine_id else [])]

    def find(self, what: str, spec: str) -> InstalledEngine:
        """Return an installed engine by its id or NAME==VERSION. Raises EngineInstallError."""
        for engine in self.installed:
            if engine.id == spec.replace("==", "-"):
                return engine
        ids = ", ".join(engine.id for engine in self.installed) or "none"
        raise EngineInstallError(f"cannot {what} {spec}: it is not installed; installed are: {ids}")


def _held_back(settings: Settings, engine_id: str) -> Iterator[str]:
    """Yield a sentence for each setting that keeps callers from a new version."""
    name, aliases, default = name_of(engine_id), settings.engine_aliases, settings.default_engine
    then = f"until you change it there to {engine_id}, and reload the daemon"
    if aliases.get(name, engine_id) != engine_id:
        yield f"engine_alias keeps {name} at {aliases[name]}, {then}"
    # A name follows, unless an alias says what it stands for.
    if default not in ("", name, engine_id, *aliases) and name_of(default) == name:
        yield f"default_engine keeps requests that name no engine at {default}, {then}"


def _order(settings: Settings, order: WarmOrder) -> None:
    if order.engine_id == order.from_engine_id:
        raise EngineInstallError(f"cannot warm {order.engine_id} from itself")
    try:
        WarmOrders(settings.state_dir).write(order)
    except OSError as failure:
        raise EngineInstallError(
            f"cannot order a warm-up: {failure.filename or settings.state_dir}: {failure.strerror};"
            f" {order.engine_id} is installed without one: before you reload the daemon, mend"
            " that and run this again"
        ) from None
    click.echo(
        f"{order.engine_id} compiles the {order.top} artifacts that are used most with"
        f" {order.from_engine_id} first; until then it is served by its id alone, and names stand"
        " for what they did before. Watch it with `wasmkiln stats`.",
        err=True,
    )


def _report(step: str) -> None:
    click.echo(f"  {step}", err=True)


def _settings(state_dir: str | None) -> Settings:
    return settings_of({"state_dir": state_dir} if state_dir else {})
