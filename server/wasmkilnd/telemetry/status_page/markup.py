"""HTML whose every text and attribute is escaped."""

from __future__ import annotations

import html
from typing import Final

_VOID: Final = frozenset({"meta", "link", "rect", "path", "line"})
# Of SVG: written without a closing tag in the form that both HTML and XML know.


class Markup(str):
    """Text that is HTML already. Nothing but this file and ``charts`` makes one."""

    __slots__ = ()


Child = Markup | str | int | None


def escaped(text: str) -> Markup:
    """Return ``text`` as HTML. What cannot be printed, or turns text around, becomes a mark."""
    if not text.isprintable():
        text = "".join(
            letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
        )
    return Markup(html.escape(text))


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """Return an element. An attribute that is None is left out.

    ``class_`` stands for the attribute ``class``, and ``_`` for a hyphen elsewhere.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Return these one after the other; None is nothing."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escaped(str(child))
            for child in children
            if child is not None
        )
    )
