"""``wasmkilnd engine``: install, list and remove engines, and say what their names stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

import click

from wasmkilnd.commands.as_owner import settings_of
from wasmkilnd.commands.running import processes, reload_option, take_in
from wasmkilnd.engines import names as naming
from wasmkilnd.engines.install import KINDS, EngineInstallError, EngineStore, InstalledEngine
from wasmkilnd.lifecycle.running import running
from wasmkilnd.ownership import NotOurs
from wasmkilnd.usage import MAX_USES

_HELP = {"help_option_names": ["-h", "--help"]}
_say = partial(click.echo, err=True)


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
    if len(specs) > 1 and (sha256 or warm_from):
        raise click.UsageError("--sha256 and --warm-from: install engines one by one")
    state = _State(state_dir)
    settings, store = state.settings, state.store
    if warm_from:
        warm_from = state.find("warm from", warm_from).id
    installed = 0
    for spec in specs:
        try:
            done = store.install(spec, python, _say, sha256)
        except (EngineInstallError, NotOurs) as failure:
            if not keep_going:
                raise
            _say(f"warning: {failure}")
            continue
        installed += 1
        _say(f"{done.id} is installed ({done.python})")
        if warm_from:
            state.order(naming.WarmOrder(done.id, warm_from, top))
        for each in state.held_back(done, warmed=bool(warm_from)):
            _say(each)
    if not installed:
        raise EngineInstallError("cannot install any of the engines: see the warnings above")
    take_in(settings.state_dir, "serves what is new", and_reload=and_reload)


@engine.command(name="ls", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_state_dir
def list_engines(as_json: bool, state_dir: str | None) -> None:
    """List the installed engines, newest versions first."""
    state = _State(state_dir)
    if as_json:
        rows = [
            {"id": found.id, **asdict(found), "path": str(found.path), "names": state.of(found.id)}
            for found in state.installed
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for found in state.installed:
        called = f"  ({', '.join(state.of(found.id))})" if state.of(found.id) else ""
        click.echo(f"{found.id:<20} {found.python:<18} {found.path}{called}")
        try:
            found.check()
        except NotOurs as refusal:
            _say(f"{found.id} is not served: {refusal}")
    for folder in state.store.damaged():
        _say(f"damaged: {folder}; install that engine again")
    if not state.installed:
        known = ", ".join(f"{name}=={kind.default_version}" for name, kind in KINDS.items())
        _say(f"none is installed; run `wasmkilnd engine install`: {known}")


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
    state = _State(state_dir)
    found, folder = state.find("remove", engine_id), state.settings.state_dir
    if not force and (daemons := running(folder)):
        raise EngineInstallError(
            f"a daemon runs on this state directory ({processes(daemons)}): its callers may use"
            f" {found.id}, and would get ENGINE_REMOVED. Once none asks for it, remove it with"
            " --force"
        )
    called = state.of(found.id)
    # The last engine leaves no other to its callers.
    if not force and called and len(state.installed) > 1:
        raise EngineInstallError(
            f"{' and '.join(called)} stand{'s' if len(called) == 1 else ''} for {found.id}:"
            " callers would get another engine. Choose that first, with `wasmkilnd engine use`,"
            " engine_alias or default_engine, or remove it with --force"
        )
    state.store.remove(found)
    with suppress(OSError):  # Then its callers get ENGINE_UNKNOWN after a restart.
        state.record.change(lambda record: record.without(found.id))
    _say(f"{found.id} is removed")
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
    state = _State(state_dir)
    settings, found = state.settings, state.find("use", engine_id)
    for setting, what, says in (
        ("engine_alias", found.name, found.name in settings.engine_aliases),
        ("default_engine", "a request that names none", as_default and settings.default_engine),
    ):
        if says:
            raise EngineInstallError(
                f"{setting} says what {what} stands for: change it there, and reload the daemon"
            )
    # What names stand for without a record stays, too.
    now = naming.to_record(state.choices, state.names, state.ids, state.store.ids())
    names = naming.moved_to(now, found.id)
    if as_default:
        names[naming.DEFAULT] = found.id
    state.change(lambda record: replace(record, names=names))
    also = " and requests that name no engine" if names.get(naming.DEFAULT) == found.id else ""
    _say(f"{found.name}{also} will stand for {found.id}")
    take_in(settings.state_dir, "takes that over", and_reload=and_reload)


class _State:
    """What names stand for, by what is installed: whether it works, only a daemon knows."""

    def __init__(self, state_dir: str | None) -> None:
        """Read it. Raises NotOurs."""
        self.settings = settings_of({"state_dir": state_dir} if state_dir else {})
        aliases, default = self.settings.engine_aliases, self.settings.default_engine
        self.store = EngineStore(self.settings.state_dir)
        self.installed = self.store.installed()
        self.record = naming.NameRecord(self.settings.state_dir)
        self.choices = naming.NameChoices(aliases, default, self.record.read().names)
        self.ids = [engine.id for engine in self.installed]
        self.names = naming.resolve(self.choices, self.ids)

    def of(self, engine_id: str) -> list[str]:
        """Return what stands for an engine, in words."""
        found = [name for name, each in sorted(self.names.by_name.items()) if each == engine_id]
        return [*found, *(["the default"] if self.names.default == engine_id else [])]

    def find(self, what: str, spec: str) -> InstalledEngine:
        """Return an installed engine by its id or NAME==VERSION. Raises EngineInstallError."""
        for engine in self.installed:
            if engine.id == spec.replace("==", "-"):
                return engine
        ids = ", ".join(self.ids) or "none"
        raise EngineInstallError(f"cannot {what} {spec}: it is not installed; installed are: {ids}")

    def held_back(self, new: InstalledEngine, *, warmed: bool) -> Iterator[str]:
        """Yield a sentence for each thing that keeps callers from a new version."""
        name, aliases, default = new.name, self.choices.aliases, self.choices.default
        then = f"until you change it there to {new.id}, and reload the daemon"
        also = "also after the warm-up " if warmed else ""
        if aliases.get(name, new.id) != new.id:
            yield f"{also}engine_alias keeps {name} at {aliases[name]}, {then}"
        # A name follows, unless an alias says what it stands for.
        if default not in ("", name, new.id, *aliases) and naming.name_of(default) == name:
            yield f"{also}default_engine keeps requests that name no engine at {default}, {then}"
        kept = self.names.by_name.get(name, new.id)
        if not warmed and kept != new.id and name in {*self.choices.recorded} - {*aliases}:
            yield (
                f"{name} goes on to stand for {kept}: `wasmkilnd engine use {new.id}` changes that"
            )

    def order(self, order: naming.WarmOrder) -> None:
        """Write the order of a warm-up, and say so. Raises EngineInstallError."""
        if order.engine_id == order.from_engine_id:
            raise EngineInstallError(f"cannot warm {order.engine_id} from itself")
        self.change(lambda record: record.ordered(order.engine_id, order))
        _say(
            f"{order.engine_id} compiles the {order.top} artifacts that are used most with"
            f" {order.from_engine_id} first; until then it is served by its id alone, and names"
            " stand for what they did before. Watch it with `wasmkiln stats`."
        )

    def change(self, change: Callable[[naming.Record], naming.Record]) -> None:
        """Change the record of names. Raises EngineInstallError."""
        try:
            self.record.change(change)
        except OSError as failure:
            where = failure.filename or self.settings.state_dir
            raise EngineInstallError(
                f"cannot write {where}: {failure.strerror}; mend that and run this again before"
                " you reload the daemon"
            ) from None
