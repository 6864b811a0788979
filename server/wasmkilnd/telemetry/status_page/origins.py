"""The origins of artifacts: their order, and how charts and lists show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from wasmkilnd.model import Origin


@dataclass(frozen=True, slots=True)
class Look:
    """How an origin is shown."""

    name: str
    colour: str
    """A class of the style sheet."""


ORIGINS: Final[Mapping[Origin, Look]] = {
    Origin.MEMORY: Look("memory", "c1"),
    Origin.HOST_STORE: Look("host store", "c2"),
    Origin.REDIS: Look("Redis", "c3"),
    Origin.JOINED_FLIGHT: Look("joined a compile", "c4"),
    Origin.COMPILED: Look("compiled", "c5"),
}
"""The fastest first."""
