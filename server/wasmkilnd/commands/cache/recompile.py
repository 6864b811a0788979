"""Compile stored artifacts again, and compare: an engine always makes the same code of a module.

So an artifact with other code was not made by its engine: a daemon that signed it is compromised,
or its key is stolen.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from wasmkiln.attestation import peek

from wasmkilnd.cache.fleet.null_fleet import NullClaim
from wasmkilnd.cache.redis.concurrency import for_each
from wasmkilnd.cache.redis.value_reader import ValueReader
from wasmkilnd.cache.value.names import ValueKey
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.config.machine import cpu_count
from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.child.cpu import NATIVE
from wasmkilnd.engines.install.start import WorkerOptions, serve_engines
from wasmkilnd.engines.install.store import EngineStore
from wasmkilnd.engines.names import NameChoices
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.engines.workers.isolation import IsolationGuard
from wasmkilnd.engines.workers.job_users import JobUsers
from wasmkilnd.errors import Reason, WasmkilnError, server_draining
from wasmkilnd.fingerprint import fingerprint
from wasmkilnd.maintenance.scrub import Scrub
from wasmkilnd.model import Artifact, CompileSpec, Module
from wasmkilnd.options import limits_of
from wasmkilnd.ports import CompiledCode, Recorder
from wasmkilnd.reloadable import Reloadable
from wasmkilnd.waiters import Waiter, Waiters

_REPLACED = "it was deleted or replaced meanwhile"
# With these errors, an engine cannot have made an artifact of the module.
_CANNOT_BE = frozenset({Reason.MODULE_INVALID, Reason.ENGINE_LACKS_FEATURE})


@dataclass(slots=True)
class Recompiled:
    """The results of compiling again."""

    same: int = 0
    other: int = 0
    unchecked: Counter[str] = field(default_factory=Counter)
    """Artifacts that cannot be checked here, by reason."""


class _NotCheckable(Exception):  # noqa: N818 - an answer
    """The artifact cannot be checked here; the message says why."""


class _OtherCode(Exception):  # noqa: N818 - an answer
    """The artifact is not what its engine makes; the message says how it differs."""


class Recompiler:
    """Compiles artifacts again, in workers as a daemon does, and rejects those that differ."""

    def __init__(
        self,
        engines: EngineRegistry,
        broken: Mapping[str, str],
        reader: ValueReader,
        scrub: Scrub,
        settings: Settings,
    ) -> None:
        """Compile with ``engines``; ``broken`` holds why each of the others does not work."""
        self._engines = engines
        self._broken = broken
        self._served = {engine.id for engine in engines.served}
        self._reader = reader
        self._scrub = scrub
        self._limit_bytes = settings.max_artifact_bytes
        self._at_once = settings.effective_workers
        self.report = Recompiled()

    async def check(self, keys: Sequence[ValueKey], advance: Callable[[int], None]) -> None:
        """Compile the artifacts under ``keys`` again. Raises TierUnavailable."""

        async def check(key: ValueKey) -> None:
            try:
                await self._check(key)
            except _NotCheckable as reason:
                self.report.unchecked[str(reason)] += 1
            advance(1)

        await for_each(keys, check, limit=self._at_once)

    async def _check(self, key: ValueKey) -> None:
        artifact = await self._artifact(key)
        try:
            await self._compare(artifact)
        except _OtherCode as other:
            # Compiling took a while: a daemon may have stored another artifact by now.
            value = await self._raw(key)
            if (await self._artifact(key)).sha256 != artifact.sha256:
                raise _NotCheckable(_REPLACED) from None
            self.report.other += 1
            await self._scrub.retract(key, value, f"{other}; {_signer_of(artifact)}")
        else:
            self.report.same += 1

    async def _raw(self, key: ValueKey) -> bytes:
        try:
            value = await self._reader.raw(key)
        except ValueRejected:
            value = None
        if value is None:
            raise _NotCheckable(_REPLACED)
        return value

    async def _artifact(self, key: ValueKey) -> Artifact:
        try:
            opened = await self._reader.open(key)
        except ValueRejected:
            opened = None
        if opened is None or not isinstance(opened.what, Artifact):
            raise _NotCheckable(_REPLACED)
        return opened.what

    async def _compare(self, artifact: Artifact) -> None:
        spec = self._spec_of(artifact)
        module = await self._module_of(artifact)
        made = await self._compile(spec, module)
        if made == artifact.sha256:
            return
        # Compile once more, to be sure that the engine is deterministic here.
        if await self._compile(spec, module) != made:
            raise _NotCheckable(f"{spec.engine.id} makes different code each time")
        raise _OtherCode(f"it is not what {spec.engine.id} makes of the module")

    def _spec_of(self, artifact: Artifact) -> CompileSpec:
        stored = artifact.spec
        # A daemon looks an artifact up by its fingerprint. Without this check, a signer could name
        # other settings than those of the fingerprint, and pass under these.
        if stored.cpu != NATIVE and stored.fingerprint != fingerprint(
            stored.engine, stored.target, stored.cpu, (), stored.settings
        ):
            raise _OtherCode("its fingerprint does not belong to the settings that it names")
        if cause := self._broken.get(stored.engine.id):
            raise _NotCheckable(f"{stored.engine.id} does not work here: {cause}")
        if stored.engine.id not in self._served:
            raise _NotCheckable(f"{stored.engine.id} is not installed here")
        try:
            spec = self._engines.spec(stored.engine.id, stored.target, stored.cpu, stored.settings)
        except WasmkilnError as refusal:
            raise _NotCheckable(refusal.message) from None
        if spec.fingerprint != stored.fingerprint:
            raise _NotCheckable(
                f"{stored.engine.id} has another fingerprint here: this host has other CPU"
                " features, or another build of the engine"
            )
        return spec

    async def _module_of(self, artifact: Artifact) -> Module:
        try:
            whole = await self._reader.whole(ValueKey(artifact.module_sha256), self._limit_bytes)
        except ValueRejected:
            raise _NotCheckable("its module does not verify") from None
        if whole is None:
            raise _NotCheckable("its module is not in the cache")
        pieces = await asyncio.to_thread(whole.opened.body.unpack, 0, whole.pieces)
        return Module(artifact.module_sha256, whole.opened.what.kind, b"".join(pieces))

    async def _compile(self, spec: CompileSpec, module: Module) -> str:
        try:
            waiting = self._engines.worker(
                spec, module, Waiters.of(Waiter()), unless=NullClaim().stored
            )
            async with waiting as worker:
                code = await worker.compile() if worker else None
            if not isinstance(code, CompiledCode):
                raise await code.explained() if code else server_draining()
        except WasmkilnError as refusal:
            if refusal.reason in _CANNOT_BE:
                raise _OtherCode(f"{spec.engine.id} cannot compile the module") from None
            raise _NotCheckable(f"it does not compile here: {refusal.reason.value}") from None
        return code.code.sha256


@asynccontextmanager
async def recompiler(
    engine_ids: Collection[str], reader: ValueReader, scrub: Scrub, settings: Settings
) -> AsyncIterator[Recompiler]:
    """Start those of the engines that are installed, while the context lasts."""
    installed = EngineStore(settings.state_dir).installed()
    limits = Reloadable(limits_of(settings))
    unrecorded = cast(Recorder, _Unrecorded())
    served, unserved = await serve_engines(
        [engine for engine in installed if engine.id in engine_ids],
        WorkerOptions(
            size=settings.effective_workers,
            limits=limits,
            threads=cpu_count(),
            recorder=unrecorded,
            guard=IsolationGuard(settings.isolation),
            users=JobUsers(settings.job_uid),
        ),
    )
    engines = EngineRegistry(served, NameChoices(), limits, unrecorded)
    broken = {engine.id: engine.cause for engine in unserved}
    try:
        yield Recompiler(engines, broken, reader, scrub, settings)
    finally:
        await engines.close()


class _Unrecorded:
    """A recorder that drops all metrics: a command has no endpoint for them."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing


def _nothing(*args: Any) -> None:
    pass


def _signer_of(artifact: Artifact) -> str:
    attested = peek(artifact.attestation)
    if attested is None:
        return "it names no signer"
    statement, key_id = attested
    return (
        f"key {key_id} signed it on {statement.finished_on}: stop trusting this key, unless you"
        " know why (docs/how-to/keys.md, a stolen key)"
    )
