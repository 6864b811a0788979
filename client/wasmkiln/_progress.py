"""What a compile tells its caller while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Phase(Enum):
    """What a compile is doing."""

    ASKING = "asking"
    """By digest: the daemon may look in its tiers, or compile a module that it has."""
    UPLOADING = "uploading"
    """The module is sent and then compiled; gRPC doesn't tell where one ends."""
    DOWNLOADING = "downloading"
    """The header has come; the artifact follows."""


@dataclass(frozen=True)
class Progress:
    """A moment of a compile: `done_bytes` of `total_bytes` (0 when there is no number)."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0


if TYPE_CHECKING:
    ProgressCallback = Callable[[Progress], None]
