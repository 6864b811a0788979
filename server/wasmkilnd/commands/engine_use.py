"""``wasmkilnd engine use``: let an engine's name stand for one of its versions."""

from __future__ import annotations

import click

from wasmkilnd.commands.as_owner import settings_of
from wasmkilnd.commands.running import reload_option, take_in
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.install.command import EngineInstallError
from wasmkilnd.engines.install.name_record import NameRecord
from wasmkilnd.engines.install.store import EngineStore
from wasmkilnd.engines.names import DEFAULT, NameChoices, Names, moved_to, name_of, resolve


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("engine_id", metavar="ENGINE")
@click.option("--default", "as_default", is_flag=True, help="Also for requests that name none.")
@click.option(
    "--state-dir", type=str, default=None, help="Where engines are.  [env: WASMKILN_STATE_DIR]"
)
@reload_option
def use(engine_id: str, as_default: bool, state_dir: str | None, and_reload: bool) -> None:
    """Let an engine's name stand for ENGINE, for example wasmtime-50.0.1.

    Requests that name no engine follow, if they got another version of it before.
    """
    settings = settings_of({"state_dir": state_dir} if state_dir else {})
    engine_id = engine_id.replace("==", "-")
    name = name_of(engine_id)
    installed = [each.id for each in EngineStore(settings.state_dir).installed()]
    if engine_id not in installed:
        raise EngineInstallError(
            f"cannot use {engine_id}: it is not installed; installed are:"
            f" {', '.join(installed) or 'none'}"
        )
    _refuse_what_settings_say(settings, name, as_default)
    record = moved_to(names_of(settings).recorded(), engine_id)
    if as_default:
        record[DEFAULT] = engine_id
    try:
        NameRecord(settings.state_dir).write(record)
    except OSError as failure:
        raise EngineInstallError(
            f"cannot write {failure.filename or settings.state_dir}: {failure.strerror}"
        ) from None
    also = " and requests that name no engine" if record.get(DEFAULT) == engine_id else ""
    click.echo(f"{name}{also} will stand for {engine_id}", err=True)
    take_in(settings.state_dir, "takes that over", and_reload=and_reload)


class InstalledNames:
    """What names stand for, by what is installed: whether it works, only a daemon knows."""

    def __init__(self, choices: NameChoices, names: Names) -> None:
        self._choices = choices
        self._names = names

    def of(self, engine_id: str) -> list[str]:
        """Return what stands for an engine, in words."""
        found = [name for name, each in sorted(self._names.by_name.items()) if each == engine_id]
        return [*found, *(["the default"] if self._names.default == engine_id else [])]

    def kept(self, name: str) -> str:
        """Return the id that a name goes on to stand for; empty while no daemon has started."""
        stays = name in self._choices.aliases or name in self._choices.recorded
        return self._names.by_name.get(name, "") if stays else ""

    def held_back(self, engine_id: str) -> list[str]:
        """Return a sentence for each setting that keeps callers from a new version."""
        name, aliases, default = name_of(engine_id), self._choices.aliases, self._choices.default
        then = f"until you change it there to {engine_id}, and reload the daemon"
        held = []
        if aliases.get(name, engine_id) != engine_id:
            held.append(f"engine_alias keeps {name} at {aliases[name]}, {then}")
        # A name follows, unless an alias says what it stands for.
        if default not in ("", name, engine_id, *aliases) and name_of(default) == name:
            held.append(f"default_engine keeps requests that name no engine at {default}, {then}")
        return held

    def recorded(self) -> dict[str, str]:
        """Return the record, completed by what names stand for without one."""
        names = self._names.by_name.items()
        now = {name: each for name, each in names if name == name_of(each)}
        default = {DEFAULT: self._names.default} if self._names.default else {}
        return {**now, **default, **self._choices.recorded}


def names_of(settings: Settings) -> InstalledNames:
    """Read what names stand for. May block. Raises NotOurs."""
    recorded = NameRecord(settings.state_dir).read()
    choices = NameChoices(settings.engine_aliases, settings.default_engine, recorded)
    store = EngineStore(settings.state_dir)
    installed = store.installed()
    try:
        names = resolve(choices, installed, [folder.name for folder in store.damaged()])
    except LookupError:
        names = resolve(NameChoices(choices.aliases, "", recorded), installed, [])
    return InstalledNames(choices, names)


def _refuse_what_settings_say(settings: Settings, name: str, as_default: bool) -> None:
    if name in settings.engine_aliases:
        raise EngineInstallError(
            f"engine_alias says what {name} stands for: change it there, and reload the daemon"
        )
    if as_default and settings.default_engine:
        raise EngineInstallError(
            "default_engine says what requests get that name no engine: change it there, and"
            " reload the daemon"
        )
