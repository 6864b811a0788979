"""Engines whose code has a known vulnerability: read which, and leave them out where that is set.

The table is read at a start and at a reload (``engines.advisories``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from wasmkilnd.engines.advisories import Advisories, read_advisories
from wasmkilnd.engines.served import ServedEngine
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.reload import CannotReload, Prepare
from wasmkilnd.model import UnservedEngine
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.settings import Settings


def open_advisories(settings: Settings) -> Advisories:
    """Return the table that ``settings`` ask for. May block. Raises CannotStart."""
    try:
        refuse = settings.vulnerable_engines == "refuse"
        return read_advisories(settings.advisories_file, refuse=refuse)
    except ValueError as mistake:
        raise CannotStart(str(mistake)) from None


def prepare_advisories(current: Reloadable[Advisories]) -> Prepare:
    """Return what reads the table again. Engines follow after all else (``Serving.look``)."""

    def prepare(new: Settings) -> Callable[[], None]:
        try:
            advisories = open_advisories(new)
        except CannotStart as refusal:
            raise CannotReload(str(refusal)) from None
        return partial(setattr, current, "current", advisories)

    return prepare


async def leave_out_vulnerable(
    started: Sequence[ServedEngine], advisories: Advisories
) -> tuple[list[ServedEngine], Sequence[UnservedEngine]]:
    """End the engines that are not to be served; return the others, and why those are not."""
    refused = advisories.refused(started)
    ids = {each.id for each in refused}
    for engine in started:
        if engine.id in ids:
            await engine.pool.close()
    return [engine for engine in started if engine.id not in ids], refused
