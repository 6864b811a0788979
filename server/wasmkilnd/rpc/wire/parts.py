"""Messages of many parts, which are read and written one by one, never all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from wasmkilnd.slices import collect_in_slices
from wasmkilnd.wire import varint

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a request that are bounded one by one (``bounds.TABLE``), as they came."""

    raw: bytes = field(repr=False)
    """The whole request, checked."""
    spans: Sequence[Span] = field(repr=False)

    def __getitem__(self, index: int) -> bytes:
        """Return one serialized part."""
        start, end = self.spans[index]
        return self.raw[start:end]

    def __iter__(self) -> Iterator[bytes]:
        """Return the serialized parts, in order."""
        return (self.raw[start:end] for start, end in self.spans)


async def repeated(number: int, parts: Iterable[bytes]) -> bytes:
    """Serialize a message that has nothing but ``parts``, in the repeated field ``number``."""
    tag = varint(number << 3 | 2)
    pieces = await collect_in_slices(tag + varint(len(part)) + part for part in parts)
    return b"".join(pieces)
