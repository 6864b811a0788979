"""What `wasmkiln warm` shows at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group

from wasmkiln.cli.grid import Grid
from wasmkiln.cli.text import size, time, word
from wasmkiln.v1.types_pb2 import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from rich.console import RenderableType

    from wasmkiln.v1.types_pb2 import ArtifactHeader


def warmed(
    warm_now: Sequence[tuple[str, ArtifactHeader]], document: dict[str, Any]
) -> RenderableType:
    """Show what was compiled, and a summary of all."""
    count = document["modules"]
    summary = (
        f"{count} module{'' if count == 1 else 's'}: {document['warm_before']} warm before, "
        f"{document['compiled']} compiled, {document['failed']} failed"
    )
    if document["uploaded"]:
        summary += f"; {document['uploaded']} uploaded"
    if document["pinned"]:
        summary += f"; {document['pinned']} pinned"
    if not warm_now:
        return summary
    # Of the target and the cpu, what tells the rows apart.
    differing = [
        field
        for field in ("target", "cpu")
        if len({getattr(header, field) for _, header in warm_now}) > 1
    ]
    table = Grid("module", "engine", *differing, "origin", ">size", ">compile")
    for name, header in warm_now:
        table.row(
            name,
            header.engine.id,
            *(getattr(header, field) for field in differing),
            word(Origin, header.origin),
            size(header.size_bytes),
            time(header.compile_time),
        )
    return Group(table.shown(), summary)
