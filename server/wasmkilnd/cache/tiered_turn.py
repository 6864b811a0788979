"""A turn to compile, as the tiers see it: what memory holds needs no turn, and what was made
elsewhere is fetched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from wasmkilnd.cache.turns import Claim
from wasmkilnd.errors import DoneElsewhere
from wasmkilnd.model import Artifact, Origin

V = TypeVar("V")


class TieredTurn:
    """The port of a turn. For the tasks of one flight."""

    def __init__(
        self,
        claim: Claim,
        here: Callable[[], Awaitable[Artifact | None]],
        is_here: Callable[[], Awaitable[bool]],
        anywhere: Callable[[], Awaitable[tuple[Artifact, Origin] | None]],
    ) -> None:
        """``here`` looks into this daemon's memory, which ``is_here`` does touching nothing."""
        self._claim = claim
        self._here = here
        self._is_here = is_here
        self._anywhere = anywhere

    async def made(self) -> tuple[Artifact, Origin] | None:
        """As Turn."""
        # Another flight of this key may have landed since the caller looked. Without this
        # second look, that interleaving would compile the same module twice.
        artifact = await self._here()
        if artifact:
            return artifact, Origin.MEMORY
        if not await self._claim.stored():
            return None
        found = await self._anywhere()
        if found is None:
            self._claim.insist()  # Or it would be found stored, and no good, again and again.
        return found

    async def unless_made(self, work: Coroutine[Any, Any, V]) -> V:
        """As Turn."""
        return await self._claim.unless_stored(work)

    async def begin(self) -> None:
        """As Turn."""
        if await self._is_here():
            raise DoneElsewhere
        await self._claim.begin()

    def failed(self) -> None:
        """As Turn."""
        self._claim.failed()
