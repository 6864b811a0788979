"""Messages of many parts, which the daemon reads and writes one by one, never all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from wasmkilnd.slices import collect_in_slices
from wasmkilnd.wire import varint

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Parts:
    """The serialized parts of a request, such as the 10,000 keys of one FindMissing."""

    raw: bytes = field(repr=False)
    """The whole request, checked against its bounds."""
    spans: Sequence[Span] = field(repr=False)

    def __getitem__(self, index: int) -> bytes:
        """Return one serialized part."""
        start, end = self.spans[index]
        return self.raw[start:end]

    def __iter__(self) -> Iterator[bytes]:
        """Return the serialized parts, in order."""
        return (self.raw[start:end] for start, end in self.spans)


async def repeated(number: int, parts: Iterable[bytes]) -> bytes:
    """Return a serialized message that has only ``parts``, in the repeated field ``number``."""
    tag = varint(number << 3 | 2)
    pieces = await collect_in_slices(tag + varint(len(part)) + part for part in parts)
    return b"".join(pieces)
