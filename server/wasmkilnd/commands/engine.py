"""``wasmkilnd engine``: install, list and remove engines, and say what their names stand for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from operator import methodcaller

import click

from wasmkilnd.commands.reload import processes, reload_option, take_in
from wasmkilnd.commands.shared import json_option, print_rows, say, with_settings
from wasmkilnd.engines import names as naming
from wasmkilnd.engines.install import EngineInstallError, EngineStore, InstalledEngine
from wasmkilnd.files.ownership import NotOurs
from wasmkilnd.lifecycle.running import running
from wasmkilnd.settings import Settings
from wasmkilnd.usage import MAX_USES

_settings = with_settings("state_dir")
_engine = click.argument("engine_id", metavar="ENGINE")
_COUNT = click.IntRange(1, MAX_USES)


@click.group()
def engine() -> None:
    """Install, list and remove engines."""


@engine.command()
@click.argument("specs", nargs=-1, required=True, metavar="NAME[==VERSION]...")
@click.option("--python", default="", help="The interpreter to use, instead of searching.")
@click.option("--keep-going", is_flag=True, help="Go on after a failure: one engine is enough.")
@click.option("--sha256", multiple=True, metavar="DIGEST", help="Accept this wheel; repeatable.")
@click.option("--warm-from", default="", metavar="ENGINE", help="First compile what is hot there.")
@click.option("--top", type=_COUNT, default=100, show_default=True, help="How many it compiles.")
@reload_option
@_settings
def install(
    settings: Settings,
    specs: Sequence[str],
    python: str,
    keep_going: bool,
    sha256: Sequence[str],
    warm_from: str,
    top: int,
    and_reload: bool,
) -> None:
    """Install engines, each in a virtual environment of its own.

    Without a version, install the one that this release was tested with. The wheels of tested
    versions are pinned by SHA-256; others are installed with a warning, or by --sha256, which is
    given once for each wheel. Where an engine finds no CPython that it runs in, uv fetches one.
    With --warm-from, for example wasmtime-49.0.0, names stand for the new engine once the daemon
    has compiled for it what is used most with that one.
    """
    before, installed = _State(settings), 0
    old = before.find("warm from", warm_from).id if warm_from else ""
    for spec in specs:
        try:
            done = before.store.install(spec, python, say, sha256)
        except (EngineInstallError, NotOurs) as failure:
            if not keep_going:
                raise
            say(f"warning: {failure}")
            continue
        installed += 1
        say(f"{done.id} is installed ({done.python})")
        stands = _State(settings).names.by_name.get(done.name, done.id)
        if old:
            order = naming.WarmOrder(done.id, old, top)
            before.record.change(methodcaller("ordered", done.id, order))
            say(
                f"{done.id} compiles the {top} artifacts that are used most with {old} first; until"
                " then it is served by its id alone, and names stand for what they did before."
                " Watch it with `wasmkiln stats`."
            )
        elif stands != done.id:
            say(
                f"{done.name} goes on to stand for {stands}: `wasmkilnd engine use {done.id}`"
                " changes that, or engine_alias if it says so"
            )
    if not installed:
        raise EngineInstallError("cannot install any of the engines: see the warnings above")
    take_in(settings.state_dir, "serves what is new", and_reload=and_reload)


@engine.command()
@json_option
@_settings
def ls(settings: Settings, as_json: bool) -> None:
    """List the installed engines, newest versions first."""
    state = _State(settings)
    rows = [
        {"id": found.id, **asdict(found), "path": str(found.path), "names": state.of(found.id)}
        for found in state.installed
    ]
    print_rows(rows, "none is installed; run `wasmkilnd engine install wasmtime`", as_json=as_json)
    for found in state.installed:
        try:
            found.check()
        except NotOurs as refusal:
            say(f"{found.id} is not served: {refusal}")
    for folder in state.store.damaged():
        say(f"damaged: {folder}; install that engine again")


@engine.command()
@_engine
@click.option("--force", is_flag=True, help="Also while a daemon runs, or if names stand for it.")
@reload_option
@_settings
def remove(settings: Settings, engine_id: str, force: bool, and_reload: bool) -> None:
    """Remove an installed engine, for example wasmtime-50.0.1.

    Reload the daemons that serve it right after: they finish its jobs, and end it. Its
    artifacts stay in the cache.
    """
    state, folder = _State(settings), settings.state_dir
    found = state.find("remove", engine_id)
    why, called = "", " and ".join(state.of(found.id))
    if called and len(state.installed) > 1:  # The last engine leaves no other to its callers.
        why = f"it is {called}, and callers would get another engine; see `wasmkilnd engine use`"
    if daemons := running(folder):
        why = (
            f"a daemon runs on this state directory ({processes(daemons)}), and callers may use it"
        )
    if why and not force:
        raise EngineInstallError(
            f"cannot remove {found.id}: {why}; --force removes it all the same"
        )
    state.store.remove(found)
    with suppress(OSError):  # Then its callers get ENGINE_UNKNOWN after a restart.
        state.record.change(lambda record: record.without(found.id))
    say(f"{found.id} is removed")
    take_in(folder, "ends it, after its jobs,", and_reload=and_reload)


@engine.command()
@_engine
@click.option("--default", "as_default", is_flag=True, help="Also for requests that name none.")
@reload_option
@_settings
def use(settings: Settings, engine_id: str, as_default: bool, and_reload: bool) -> None:
    """Let an engine's name stand for ENGINE, for example wasmtime-50.0.1.

    Requests that name no engine follow, if they got another version of it before. A warm-up of
    another version that is under way does not change that any more.
    """
    state = _State(settings)
    found = state.find("use", engine_id)
    fixed = "engine_alias" if found.name in settings.engine_aliases else ""
    if fixed := fixed or ("default_engine" if as_default and settings.default_engine else ""):
        raise EngineInstallError(
            f"{fixed} says what it stands for: change it there, and reload the daemon"
        )
    # What names stand for without a record stays, too.
    now = naming.to_record(state.choices, state.names, state.ids, state.store.ids())
    names = naming.moved_to(now, found.id)
    if as_default:
        names[naming.DEFAULT] = found.id

    def change(record: naming.Record) -> naming.Record:
        orders = [each for each in record.warm_ups if naming.name_of(each.engine_id) != found.name]
        return replace(record, names=names, warm_ups=orders)

    state.record.change(change)
    also = " and requests that name no engine" if names.get(naming.DEFAULT) == found.id else ""
    say(f"{found.name}{also} will stand for {found.id}")
    take_in(settings.state_dir, "takes that over", and_reload=and_reload)


class _State:
    """What names stand for, by what is installed: whether it works, only a daemon knows."""

    def __init__(self, settings: Settings) -> None:
        """Read it. Raises NotOurs."""
        self.store = EngineStore(settings.state_dir)
        self.installed = self.store.installed()
        self.record = naming.NameRecord(settings.state_dir)
        self.choices = naming.NameChoices(
            settings.engine_aliases, settings.default_engine, self.record.read().names
        )
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
