"""Pins: modules whose artifacts the tiers keep, whatever else needs room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

IsPinned: TypeAlias = Callable[[str], bool]
"""Returns whether the module with this digest is pinned."""

MAX_PINS = 10_000
"""How many modules of a namespace may be pinned."""


def nothing_pinned(module_sha256: str) -> bool:
    """Return False: nothing is pinned."""
    return False


class PinTimes(NamedTuple):
    """When a module was pinned and unpinned last, in milliseconds since 1970; 0 for never.

    The later one counts. So what two daemons know of a module is the larger of each time.
    """

    pinned_ms: int = 0
    unpinned_ms: int = 0

    @property
    def is_pinned(self) -> bool:
        """Whether the module is pinned."""
        return self.pinned_ms > self.unpinned_ms

    def merged(self, other: PinTimes) -> PinTimes:
        """Return what both know."""
        return PinTimes(
            max(self.pinned_ms, other.pinned_ms), max(self.unpinned_ms, other.unpinned_ms)
        )


@dataclass(frozen=True, slots=True)
class Held:
    """What a tier has of one pinned module."""

    artifacts: int = 0
    modules: int = 0
    """1 if the tier has the module's own bytes."""
    bytes: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(
            self.artifacts + other.artifacts,
            self.modules + other.modules,
            self.bytes + other.bytes,
        )


@dataclass(frozen=True, slots=True)
class Pin:
    """A pinned module, and what each tier has of it."""

    module_sha256: str
    pinned_ms: int
    tiers: Mapping[str, Held] = field(default_factory=dict)
