"""Marks: what an Evict or a release leaves, so that nothing removed comes back.

A client that can write to the server can write back an old value, and its stamp is still valid.
So an Evict leaves a time, and artifacts that were made up to then are not used any more; a
release leaves a time for strikes. What a daemon makes later is later than every mark that it
knows, whatever its clock says: it takes its own time, or one millisecond after the mark if that
is later.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from wasmkiln.attestation import peek

from wasmkilnd.cache.value.format import CheckStamp, Stamp
from wasmkilnd.cache.value.names import FIRST_FORMAT
from wasmkilnd.cache.value.rejected import Cause, ValueRejected
from wasmkilnd.fingerprint import CACHE_FORMAT
from wasmkilnd.model import STAMP_BYTES, Artifact, EvictScope, IsPinned, nothing_pinned

MAX_MARK_BYTES = 16 * 1024
"""The most bytes of a stored mark."""

EVERYTHING = ""
"""Instead of a module's digest: all modules."""

_MAX_MODULES = 10_000
_MAX_ENGINES = 100
_MAX_ENGINE_CHARACTERS = 100
_MAX_MS = 1 << 62
# Part of what a stamp signs, so that no signature for another purpose passes for one.
_PURPOSE = b"wasmkiln mark\0"


@dataclass(frozen=True, slots=True)
class Mark:
    """Times in milliseconds since 1970; 0 for never."""

    evicted_ms: int = 0
    """Artifacts made up to this time are evicted."""
    released_ms: int = 0
    """Strikes up to this time are released."""
    engines: Mapping[str, int] = field(default_factory=dict)
    """As ``evicted_ms``, for the artifacts of one engine in one format of values. The key is the
    engine's id, followed by the format unless that is the first. Only in the mark of everything.
    """

    def merged(self, other: Mark) -> Mark:
        """Return a mark that says what both say."""
        engines = {
            engine: max(self.engines.get(engine, 0), other.engines.get(engine, 0))
            for engine in {**self.engines, **other.engines}
        }
        latest = sorted(engines, key=lambda engine: engines[engine])[-_MAX_ENGINES:]
        return Mark(
            max(self.evicted_ms, other.evicted_ms),
            max(self.released_ms, other.released_ms),
            {engine: engines[engine] for engine in latest},
        )


class Marks:
    """The marks that one daemon knows. It never forgets one that was on the server."""

    def __init__(
        self, clock: Callable[[], float] = time.time, is_pinned: IsPinned = nothing_pinned
    ) -> None:
        """``clock`` returns the time of day, and ``is_pinned`` whether a module is pinned."""
        self._clock = clock
        self._is_pinned = is_pinned
        self._everything = Mark()
        self._modules: OrderedDict[str, Mark] = OrderedDict()

    @property
    def now_ms(self) -> int:
        """The time of day in milliseconds."""
        return int(self._clock() * 1000)

    def of(self, module_sha256: str) -> Mark:
        """Return the mark of one module, or that of EVERYTHING."""
        if module_sha256 == EVERYTHING:
            return self._everything
        return self._modules.get(module_sha256, _NO_MARK)

    def learn(self, module_sha256: str, mark: Mark) -> None:
        """Add ``mark`` to what is known."""
        if module_sha256 == EVERYTHING:
            self._everything = self._everything.merged(mark)
        elif mark != _NO_MARK:
            self._modules[module_sha256] = self.of(module_sha256).merged(replace(mark, engines={}))
            self._modules.move_to_end(module_sha256)
            if len(self._modules) > _MAX_MODULES:
                self._modules.popitem(last=False)

    def evict(self, scope: EvictScope) -> str:
        """Note that ``scope`` is evicted now; return whose mark changed."""
        known_ms = max(
            self._everything.evicted_ms,
            self.of(scope.module_sha256).evicted_ms,
            *self._everything.engines.values(),
            0,
        )
        # An artifact made since the last mark may be later than this daemon's clock.
        until_ms = max(self.now_ms, known_ms + 1)
        if scope.engine_id:
            # Daemons with other formats evict the artifacts of those.
            engine = _in_this_format(scope.engine_id)
            if not scope.engine_id.isascii() or len(scope.engine_id) > _MAX_ENGINE_CHARACTERS:
                return EVERYTHING  # No engine has such an id.
            self.learn(EVERYTHING, Mark(engines={engine: until_ms}))
            return EVERYTHING
        self.learn(scope.module_sha256, Mark(evicted_ms=until_ms))
        return scope.module_sha256

    def release(self, module_sha256: str, newest_ms: int) -> None:
        """Note that strikes are released now, the newest of which is of ``newest_ms``."""
        until_ms = max(self.now_ms, newest_ms, self.released_ms(module_sha256) + 1)
        self.learn(module_sha256, Mark(released_ms=until_ms))

    def evicted_ms(self, module_sha256: str, engine_id: str) -> int:
        """Return the time up to which artifacts of a module and an engine are evicted."""
        everything = self._everything
        return max(
            everything.evicted_ms,
            everything.engines.get(_in_this_format(engine_id), 0),
            self.of(module_sha256).evicted_ms,
        )

    def released_ms(self, module_sha256: str) -> int:
        """Return the time up to which strikes against a module are released."""
        return max(self._everything.released_ms, self.of(module_sha256).released_ms)

    def check(self, artifact: Artifact) -> None:
        """Raise ValueRejected if ``artifact``, whose attestation is verified, was evicted.

        What is pinned is not, by an Evict of an engine or of everything.
        """
        module_sha256 = artifact.module_sha256
        if self._is_pinned(module_sha256):
            evicted_ms = self.of(module_sha256).evicted_ms
        else:
            evicted_ms = self.evicted_ms(module_sha256, artifact.spec.engine.id)
        if evicted_ms and made_ms(artifact) <= evicted_ms:
            raise ValueRejected(Cause.EVICTED, "the artifact is older than an Evict of its scope")


def made_ms(artifact: Artifact) -> int:
    """Return when ``artifact`` was made by its attestation; 0 if that holds no time."""
    attested = peek(artifact.attestation)
    if attested is None:
        return 0
    statement, _ = attested
    return statement.when_ms


def write_mark(name: bytes, mark: Mark, stamp: Stamp) -> bytes:
    """Return the bytes to store for ``mark`` under ``name``."""
    said: dict[str, object] = {"evicted_ms": mark.evicted_ms, "released_ms": mark.released_ms}
    if mark.engines:
        said["engines"] = dict(mark.engines)
    text = json.dumps(said, sort_keys=True).encode()
    return stamp(_message(name, text)) + text


def read_mark(name: bytes, record: bytes, check: CheckStamp) -> Mark:
    """Return the mark that was stored under ``name``; an empty one without a valid stamp.

    Ignores unknown fields.
    """
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if not text or len(record) > MAX_MARK_BYTES or check(_message(name, text), stamp):
        return _NO_MARK
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return _NO_MARK
    if not isinstance(said, dict):
        return _NO_MARK
    engines = said.get("engines", {})
    return Mark(
        _time(said.get("evicted_ms")),
        _time(said.get("released_ms")),
        {
            engine: _time(value)
            for engine, value in (engines.items() if isinstance(engines, dict) else ())
            if _time(value)
        },
    )


def _in_this_format(engine_id: str) -> str:
    return engine_id if CACHE_FORMAT == FIRST_FORMAT else f"{engine_id} v{CACHE_FORMAT}"


def _time(value: object) -> int:
    return value if type(value) is int and 0 <= value < _MAX_MS else 0


def _message(name: bytes, text: bytes) -> bytes:
    return b"%b%b\0%b" % (_PURPOSE, name, text)


_NO_MARK = Mark()
