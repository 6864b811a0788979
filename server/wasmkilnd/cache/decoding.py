"""Artifacts of memory that are encoded, decoded once for all callers that take no encoding."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

import structlog

from wasmkilnd import wire
from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.value import ValueRejected, unpacked_frames
from wasmkilnd.model import Artifact, RejectionCause

log = structlog.get_logger("wasmkilnd.cache")


class Decoder:
    """Decodes artifacts of one namespace, each once at a time. For one event loop."""

    def __init__(
        self,
        memory: MemoryTier,
        keep: Callable[[Artifact], None],
        forget: Callable[[Artifact], Awaitable[None]],
    ) -> None:
        """``keep`` stores what was decoded, and ``forget`` removes what cannot be."""
        self._memory, self._keep, self._forget = memory, keep, forget
        self._decoding: dict[Artifact, tuple[Artifact, asyncio.Task[Artifact | None]]] = {}

    async def as_accepted(self, artifact: Artifact, accept: frozenset[str]) -> Artifact | None:
        """Return an artifact of memory as it is, or decoded: then its frames may be ``coming``.

        None if the first cannot be decoded. A trusted key signed these bytes, so whoever stored
        them was broken.
        """
        if not artifact.encoding or artifact.encoding in accept:
            return artifact
        if artifact not in self._decoding:
            loop = asyncio.get_running_loop()
            coming = [loop.create_future() for _ in artifact.frames]
            plain = dataclasses.replace(artifact, frames=(), encoding="", coming=coming)
            self._decoding[artifact] = plain, loop.create_task(self._decode(artifact, coming))
        plain, decoding = self._decoding[artifact]
        with contextlib.suppress(ValueRejected):
            if artifact.size_bytes <= wire.ONE_MESSAGE_BYTES:  # Which has all of it, or nothing.
                return await asyncio.shield(decoding)
            await asyncio.shield(plain.coming[0])
            return plain
        return None

    async def _decode(
        self, artifact: Artifact, coming: Sequence[asyncio.Future[bytes]]
    ) -> Artifact | None:
        """Decode an artifact of memory for all callers, frame by frame; then keep that instead.

        Drop it if it cannot be decoded, so that it is compiled again.
        """
        call, frames = asyncio.get_running_loop().call_soon_threadsafe, list[bytes]()

        def decode() -> None:
            for one, decoded in zip(coming, unpacked_frames(artifact), strict=True):
                frames.append(decoded)
                call(one.set_result, decoded)

        try:
            if artifact.size_bytes > wire.ONE_MESSAGE_BYTES:
                await asyncio.to_thread(decode)
            else:
                decode()
        except Exception as failure:  # Whatever it is, nobody may wait for a frame for ever.
            why = failure.why if isinstance(failure, ValueRejected) else repr(failure)
            log.warning("cannot decode an artifact", why=why)
            self._memory.drop([artifact])
            for one in coming:
                if not one.done():
                    one.set_exception(ValueRejected(RejectionCause.FORMAT, why))
                    one.exception()  # Perhaps nobody waits for it.
            if isinstance(failure, ValueRejected):
                await self._forget(artifact)
            return None
        else:
            found = dataclasses.replace(artifact, frames=tuple(frames), encoding="")
            if self._memory.holds(artifact):
                self._keep(found)
            return found
        finally:
            del self._decoding[artifact]
