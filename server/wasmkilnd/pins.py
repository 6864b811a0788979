"""The pins of one namespace that one daemon knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wasmkilnd.model import MAX_PINS, PinTimes


@dataclass(frozen=True, slots=True)
class PinChanges:
    """What changed when a daemon learned of pins."""

    pinned: frozenset[str] = frozenset()
    unpinned: frozenset[str] = frozenset()


class Pins:
    """Knows which modules are pinned. A data structure only; for one event loop.

    ``is_pinned`` may be called from any thread. An unpinned module is remembered, so that a daemon
    that has not heard of it pins nothing again; of those, the latest MAX_PINS.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` returns the time of day."""
        self._clock = clock
        self._times: dict[str, PinTimes] = {}
        self._pinned: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._pinned)

    def is_pinned(self, module_sha256: str) -> bool:
        """Return whether a module is pinned."""
        return module_sha256 in self._pinned

    @property
    def pinned(self) -> Mapping[str, int]:
        """The pinned modules, and since when in milliseconds."""
        return self._pinned

    @property
    def times(self) -> Mapping[str, PinTimes]:
        """All that is known, of unpinned modules too."""
        return self._times

    def pin(self, module_sha256: str) -> None:
        """Pin a module now."""
        before = self._times.get(module_sha256, PinTimes())
        if not before.is_pinned:
            now_ms = max(int(self._clock() * 1000), before.unpinned_ms + 1)
            self.learn({module_sha256: before._replace(pinned_ms=now_ms)})

    def unpin(self, module_sha256: str) -> bool:
        """Unpin a module now; return whether it was pinned."""
        before = self._times.get(module_sha256, PinTimes())
        if before.is_pinned:
            now_ms = max(int(self._clock() * 1000), before.pinned_ms)
            self.learn({module_sha256: before._replace(unpinned_ms=now_ms)})
        return before.is_pinned

    def learn(self, times: Mapping[str, PinTimes]) -> PinChanges:
        """Add what another daemon, or an earlier one, knew; return what changed."""
        pinned, unpinned = set[str](), set[str]()
        for module, said in times.items():
            before = self._times.get(module, PinTimes())
            if said == before:
                continue  # As nearly all are, at each look.
            after = self._times[module] = before.merged(said)
            if after.is_pinned:
                self._pinned[module] = after.pinned_ms
            elif self._pinned.pop(module, None) is not None:
                unpinned.add(module)
            if after.is_pinned and not before.is_pinned:
                pinned.add(module)
        self._forget_some()
        return PinChanges(frozenset(pinned), frozenset(unpinned))

    def _forget_some(self) -> None:
        if len(self._times) - len(self._pinned) <= MAX_PINS:
            return
        unpinned = [module for module in self._times if module not in self._pinned]
        unpinned.sort(key=lambda module: self._times[module].unpinned_ms)
        for module in unpinned[: len(unpinned) - MAX_PINS]:
            del self._times[module]
