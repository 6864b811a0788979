"""The turn of who compiles anew, whatever is there and whoever makes it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from wasmkilnd.model import Artifact, Origin

V = TypeVar("V")


class Anew:
    """The port of a turn, for a call that skips the look-up."""

    async def made(self) -> tuple[Artifact, Origin] | None:
        """Answer None: what is there is not asked for."""
        return None

    async def unless_made(self, work: Coroutine[Any, Any, V]) -> V:
        """Answer what ``work`` answers."""
        return await work

    async def begin(self) -> None:
        """Return at once."""

    def failed(self) -> None:
        """Do nothing."""
