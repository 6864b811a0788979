"""What came of a run: its numbers, its failures, and the document of --json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wasmkiln.cli.batch import errors_in
from wasmkiln.cli.json_output import to_document

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from wasmkiln.cli.batch import Done
    from wasmkiln.cli.warming.module import Module
    from wasmkiln.v1.admin_service_pb2 import PinResponse
    from wasmkiln.v1.types_pb2 import ArtifactHeader


@dataclass(frozen=True)
class Outcome:
    """What became of each source, variant, artifact and pin.

    One that has neither a result nor an error was not tried, since no daemon answered any more.
    """

    modules: int
    """How many modules could be read, each once."""
    variants: int
    """How many artifacts of each module were asked for."""
    uploaded: int
    read: Sequence[Done[list[Module]]]
    refused: Sequence[Done[ArtifactHeader]]
    """Variants that the daemon does not have."""
    compiled: Sequence[Done[ArtifactHeader]]
    """One for each artifact that no tier had."""
    pinned: Sequence[Done[PinResponse]]

    @property
    def warm_now(self) -> list[tuple[str, ArtifactHeader]]:
        """Return the name and the header of each artifact that was compiled."""
        return [(one.source, one.result) for one in self.compiled if one.result is not None]

    @property
    def everything(self) -> list[Done[Any]]:
        """Return what became of each, in the order of the work."""
        return [*self.read, *self.refused, *self.compiled, *self.pinned]

    @property
    def failed(self) -> int:
        """Return how many failed, or were not tried."""
        return _failed(self.everything)

    @property
    def redis_unreachable(self) -> bool:
        """Return whether other daemons do not know of all pins yet."""
        return any(one.result is not None and one.result.redis_unreachable for one in self.pinned)

    def document(self) -> dict[str, Any]:
        """Return what --json prints."""
        return {
            "modules": self.modules + _failed(self.read),
            "warm_before": self.modules * self.variants - len(self.compiled),
            "compiled": len(self.warm_now),
            "uploaded": self.uploaded,
            "pinned": len(self.pinned) - _failed(self.pinned),
            "failed": self.failed,
            "artifacts": [
                {"source": name, **to_document(header)} for name, header in self.warm_now
            ],
            "errors": errors_in(self.everything),
        }


def _failed(done: Sequence[Done[Any]]) -> int:
    return sum(one.result is None for one in done)
