"""Print settings for people and scripts: as TOML, as JSON, and as the reference page."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import SecretStr

from wasmkilnd.config.load import CONFIG_ENV, LoadedSettings
from wasmkilnd.config.schema import Settings, env_name, flag_name, has_flag, is_live
from wasmkilnd.config.values.quantity import written
from wasmkilnd.config.values.types import AUTO


def render(loaded: LoadedSettings) -> str:
    """Return one line ``key = value  # origin`` per setting: valid TOML, secrets masked."""
    lines = []
    for field, origin in loaded.origins.items():
        value = _toml(shown_value(loaded.settings, field))
        effective = _effective(loaded.settings, field)
        note = "" if effective is None else f"; {_written(field, effective)} in force"
        lines.append(f"{field} = {value}  # {_one_line(origin)}{note}\n")
    return "".join(lines)


def as_json(loaded: LoadedSettings) -> str:
    """Return a JSON object: by field ``value``, ``origin`` and ``in_force``, secrets masked.

    Sizes are in bytes and durations in seconds. ``in_force`` differs from ``value``
    where 0 or auto stands for what the machine has.
    """
    shown = {}
    for field, origin in loaded.origins.items():
        value = _plain(_of(loaded.settings, field))
        effective = _effective(loaded.settings, field)
        in_force = value if effective is None else effective
        shown[field] = {"value": value, "origin": origin, "in_force": in_force}
    return json.dumps(shown, indent=2)


def reference() -> str:
    """Return the Markdown of docs/reference/configuration.md."""
    rows = []
    for field, info in Settings.model_fields.items():
        default = shown_default(field)
        meaning = (info.description or "").replace("|", "\\|")
        default_cell = f"`{default}`" if default else "(empty)"
        flag_cell = f"`{flag_name(field)}`" if has_flag(field) else "none: it is a secret"
        live_cell = "yes" if is_live(field) else ""
        rows.append(
            f"| `{field}` | `{env_name(field)}` | {flag_cell} | {default_cell} | {live_cell} |"
            f" {meaning} |\n"
        )
    return _REFERENCE_HEAD + "".join(rows)


def shown_value(settings: Settings, field: str) -> object:
    """Return a setting's value as a person writes it, secrets masked."""
    return _written(field, _of(settings, field))


def _of(settings: Settings, field: str) -> object:
    """Return a setting's value. The query of a URL may hold a secret, and is left out."""
    value = getattr(settings, field)
    if field == "jwt_keys" and "://" in value and "?" in value:
        return value.partition("?")[0] + "?***"
    return value


def shown_default(field: str) -> str:
    """Return a setting's default as the documentation writes it, the same on every machine."""
    info = Settings.model_fields[field]
    extra = info.json_schema_extra
    if isinstance(extra, dict) and "shown_default" in extra:
        return str(extra["shown_default"])
    value = _written(field, info.default)
    if isinstance(value, tuple):
        return ",".join(str(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


_REFERENCE_HEAD = f"""\
# Configuration

Generated from `server/wasmkilnd/config/sections/`: change it there.

A flag wins over the environment, the environment over the file, the file over the default.
The file is TOML, named by `--config` or `{CONFIG_ENV}`; its keys are the names below. Unknown
keys, unknown `WASMKILN_*` variables and impossible values stop the daemon at start.
`wasmkilnd config` prints each value and where it came from.

Relative paths begin in the directory that the daemon, or the command, was started in.

Sizes (`_bytes`) are bytes, or take a suffix: `KB`, `MB`, `GB` (powers of 1,000), `KiB`, `MiB`,
`GiB` (powers of 1,024). Durations (`_s`) are seconds, or take a suffix: `ms`, `s`, `m`, `h`, `d`.

On `SIGHUP` a running daemon reads all of it again and takes over the settings marked *live*; the
others need a restart ([Reload a daemon](../how-to/reload.md)).

| key | environment | flag | default | live | meaning |
|---|---|---|---|---|---|
"""


def _effective(settings: Settings, field: str) -> int | float | None:
    # Only where 0 or auto stands for what the machine has.
    if getattr(settings, field) not in (0, AUTO):
        return None
    effective: int | float | None = getattr(settings, f"effective_{field}", None)
    return effective or None


def _plain(value: object) -> object:
    return str(value) if isinstance(value, SecretStr | Path) else value


def _written(field: str, value: object) -> object:
    return written(field, _plain(value))


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    return _toml_text(value) if isinstance(value, str) else str(value)


def _toml_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_one_line(escaped)}"'


def _one_line(text: str) -> str:
    # TOML wants control characters escaped, and cannot write half a surrogate pair, which is
    # how Python represents a file name that is not UTF-8.
    return "".join(
        each
        if each.isprintable()
        else "\ufffd"
        if "\ud800" <= each <= "\udfff"
        else f"\\U{ord(each):08x}"
        for each in text
    )
