"""Compare the current settings with those that a reload read."""

from __future__ import annotations

from dataclasses import dataclass

from wasmkilnd.config.schema import Settings, is_live
from wasmkilnd.config.show import shown_value


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs; its values are as a person writes them, with secrets masked."""

    field: str
    old: object
    new: object
    live: bool
    """Whether a running daemon takes it over; otherwise it needs a restart."""


def changes(old: Settings, new: Settings) -> list[Change]:
    """Return each setting whose value differs, in the schema's order."""
    return [
        Change(field, shown_value(old, field), shown_value(new, field), is_live(field))
        for field in Settings.model_fields
        if getattr(old, field) != getattr(new, field)
    ]


def take_over(old: Settings, new: Settings, fields: list[str]) -> Settings:
    """Return the settings ``old`` with ``fields`` replaced by those of ``new``."""
    return old.model_copy(update={field: getattr(new, field) for field in fields})
