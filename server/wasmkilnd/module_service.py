"""Load, FindMissing and Evict: the calls about stored modules and artifacts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence

from wasmkilnd import errors
from wasmkilnd.admission import Admission, check_sha256
from wasmkilnd.cache.cache import Cache
from wasmkilnd.flights import Flights
from wasmkilnd.model import CacheKey, Evicted, EvictScope, Kind
from wasmkilnd.pins import Pins
from wasmkilnd.ports import Engines
from wasmkilnd.quarantine import Quarantine
from wasmkilnd.requests import LoadRequest, LoadResult, WantedArtifact
from wasmkilnd.slices import in_slices

# How many keys FindMissing looks up at once: this holds the event loop for milliseconds.
_LOOKED_UP_AT_ONCE = 500


class ModuleService:
    """Serves Load, FindMissing and Evict. For one event loop."""

    def __init__(
        self,
        cache: Cache,
        engines: Engines,
        quarantine: Quarantine,
        admission: Admission,
        pins: Pins,
    ) -> None:
        self._cache = cache
        self._engines = engines
        self._quarantine = quarantine
        self._admission = admission
        self._pins = pins
        # Callers of one moment share one validation.
        self._flights = Flights()

    async def load(self, request: LoadRequest) -> LoadResult:
        """Admit, validate and store a module. Raises the errors of Load."""
        budget, expected = self._cache.wait_budget(), request.expected_sha256
        if expected:
            check_sha256(expected, "expected_sha256")
        module = await self._admission.admit(request.wasm)
        request.sha256 = module.sha256
        if expected not in ("", module.sha256):
            raise errors.digest_mismatch(expected, module.sha256)
        engine_id = self._engines.choose(request.engine, module.kind)
        already_loaded = await self._cache.get_module(module.sha256, budget) is not None
        spec = self._engines.spec(engine_id, "", "", {})
        key = spec.key_for(module.sha256)
        watch = self._quarantine.watch(key, spec, budget)
        work = self._admission.begin(engine_id, module, request.terms, compiles=False, arrived=True)
        request.terms.release()
        ticket = self._flights.join(
            key,
            request.terms.waiter,
            lambda waiters: self._engines.validate(engine_id, module, waiters, watch),
            work.bill,
        )
        ticket.on_end(lambda _: work.end())
        await ticket.wait()
        # Also where it is here already: Redis, where others look, may have lost it.
        self._cache.put(module)
        if not already_loaded:
            work.bill.stored(len(module.wasm))
        return LoadResult(
            module, engine_id, already_loaded, self._cache.memory.artifacts_of(module.sha256)
        )

    async def find_missing(self, wanted: Iterable[WantedArtifact]) -> list[int]:
        """Return the indices of those ``wanted`` that no tier holds, in ascending order.

        There may be many: they are parsed and looked up in slices, so other calls go on.
        """
        budget = self._cache.wait_budget()
        candidates = await in_slices(map(self._keys_of, wanted))
        missing: list[int] = []
        for start in range(0, len(candidates), _LOOKED_UP_AT_ONCE):
            some = candidates[start : start + _LOOKED_UP_AT_ONCE]
            held = await self._cache.held([key for keys in some for key in keys], budget)
            # Only the stored artifact tells whether its module is a component.
            unsure = [key for usual, *others in some if usual not in held for key in others]
            kinds = await self._cache.held([x for x in unsure if x in held], budget, kinds=True)
            missing += [
                index
                for index, (usual, *others) in enumerate(some, start)
                if usual not in held and Kind.COMPONENT not in map(kinds.get, others)
            ]
            await asyncio.sleep(0)
        return missing

    async def evict(self, scope: EvictScope, tier: str) -> tuple[Evicted, Sequence[str]]:
        """Evict what is not pinned of ``scope``.

        Return what was removed, and the tiers that did not answer. Raises INVALID_REQUEST, and
        MODULE_PINNED for a pinned module.
        """
        if scope.module_sha256:
            check_sha256(scope.module_sha256, "module_sha256")
        scope = await self._pins.sparing(scope)
        return await self._cache.evict(scope, tier)

    def _keys_of(self, wanted: WantedArtifact) -> list[CacheKey]:
        """Return the usual key and, if a component would have another one, also that."""
        sha256 = check_sha256(wanted.module_sha256, "keys.module_sha256")
        if wanted.fingerprint:
            return [CacheKey(sha256, check_sha256(wanted.fingerprint, "keys.fingerprint"))]
        usual = self._engines.choose(wanted.engine, None)
        for_components = self._engines.choose(wanted.engine, Kind.COMPONENT)
        keys = [self._key(sha256, usual, wanted)]
        if for_components != usual:
            # A target or setting that only the usual engine has rules out a component.
            with contextlib.suppress(errors.WasmkilnError):
                keys.append(self._key(sha256, for_components, wanted))
        return keys

    def _key(self, sha256: str, engine_id: str, wanted: WantedArtifact) -> CacheKey:
        spec = self._engines.spec(engine_id, wanted.target, wanted.cpu, wanted.settings)
        return spec.key_for(sha256)
