"""Remember verdicts, good and bad, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from wasmkilnd.engines.verdicts.verdict import Verdict

_MAX_ENTRIES = 16_384
_MAX_BYTES = 8 * 1024 * 1024
# A key of two digests and an engine's id, the verdict, and Python's own objects around them.
_OVERHEAD_BYTES = 700

Key = tuple[str, str, str]


class VerdictCache:
    """An LRU cache of verdicts. For one event loop.

    A verdict holds for as long as the engine is the same, so none expires. A key is the
    module's digest, the engine's id, and the question: "" for whether the module is valid with
    the engine's default settings, a fingerprint for whether it compiles with that spec.
    """

    def __init__(self, max_entries: int = _MAX_ENTRIES, max_bytes: int = _MAX_BYTES) -> None:
        self._verdicts: OrderedDict[Key, Verdict] = OrderedDict()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        """How many verdicts are remembered."""
        return len(self._verdicts)

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys, the least recently used first."""
        return iter(self._verdicts)

    @property
    def bytes(self) -> int:
        """About how much memory the verdicts take."""
        return self._bytes

    def get(self, key: Key) -> Verdict | None:
        """Return the verdict; None if it is not known."""
        verdict = self._verdicts.get(key)
        if verdict is not None:
            self._verdicts.move_to_end(key)
        return verdict

    def put(self, key: Key, verdict: Verdict) -> None:
        """Remember a verdict; forget the least recently used ones until all fit."""
        self.forget(key)
        self._verdicts[key] = verdict
        self._bytes += _size(verdict)
        while len(self._verdicts) > self._max_entries or self._bytes > self._max_bytes:
            self.forget(next(iter(self._verdicts)))

    def forget(self, key: Key) -> None:
        """Forget one verdict, if it is known."""
        verdict = self._verdicts.pop(key, None)
        if verdict is not None:
            self._bytes -= _size(verdict)


def _size(verdict: Verdict) -> int:
    return _OVERHEAD_BYTES + len(verdict.message.encode())
