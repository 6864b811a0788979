"""The methods that operate a daemon; generated from _aio_operations.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wasmkiln._blocking_performer import Performer
from wasmkiln._requests import (
    drain_request,
    evict_request,
    pin_request,
    release_request,
    unpin_request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from wasmkiln._calls import Calls
    from wasmkiln.v1.admin_service_pb2 import (
        DrainResponse,
        EvictResponse,
        ListPinsResponse,
        ListQuarantineResponse,
        PinResponse,
        ReleaseQuarantineResponse,
        UnpinResponse,
    )
    from wasmkiln.v1.module_service_pb2 import GetCapabilitiesResponse, StatsResponse
    from wasmkiln.v1.types_pb2 import ArtifactKey


class Operations(Performer):
    """What an operator does with a daemon, and what anybody asks about it."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls.access)
        self._calls = calls

    @property
    def address(self) -> str:
        """The daemon's address."""
        return self._calls.access.address

    def stats(self, *, timeout_s: float | None = None) -> StatsResponse:
        """Return the daemon's counters since its start, and percentiles of its latest calls."""
        return self._run(self._calls.stats(timeout_s))

    def capabilities(self, *, timeout_s: float | None = None) -> GetCapabilitiesResponse:
        """Return the engines, targets, cpus, settings and limits of the daemon."""
        return self._run(self._calls.capabilities(timeout_s))

    def find_missing(
        self, keys: Iterable[ArtifactKey | str], *, timeout_s: float | None = None
    ) -> list[ArtifactKey]:
        """Return the keys whose artifact no tier holds, in the order given.

        A digest stands for the default engine's artifact. The client asks in batches of as many
        keys as the daemon allows. Raise EngineUnknown, TargetUnsupported or SettingUnknown.
        """
        return self._run(self._calls.find_missing(keys, timeout_s))

    def evict(
        self,
        *,
        module_sha256: str | None = None,
        engine: str | None = None,
        everything: bool = False,
        tier: Literal["memory", "host_store", "redis"] | None = None,
        timeout_s: float | None = None,
    ) -> EvictResponse:
        """Remove the artifacts of a module, of an engine, or all, from one tier or from every one.

        What is pinned stays, and is counted in `pinned`; for a pinned module, raise ModulePinned.
        Raise ValueError unless exactly one of the three scopes is given.
        """
        request = evict_request(
            module_sha256=module_sha256, engine=engine, everything=everything, tier=tier
        )
        return self._run(self._calls.evict(request, timeout_s))

    def quarantined(self, *, timeout_s: float | None = None) -> ListQuarantineResponse:
        """Return the modules that the daemon refuses because they broke a compiler."""
        return self._run(self._calls.quarantined(timeout_s))

    def release(
        self,
        module_sha256: str | None = None,
        *,
        everything: bool = False,
        timeout_s: float | None = None,
    ) -> ReleaseQuarantineResponse:
        """Release one module, or every one, from quarantine, and forget its failures.

        Raise ValueError unless exactly one scope is given.
        """
        return self._run(self._calls.release(release_request(module_sha256, everything), timeout_s))

    def pin(self, module_sha256: str, *, timeout_s: float | None = None) -> PinResponse:
        """Keep a module and all of its artifacts, now and later, whatever else needs room.

        Raise ModuleNotLoaded if no tier knows the module, PinsFull if there are too many pins,
        and ValueError for what is no digest.
        """
        return self._run(self._calls.pin(pin_request(module_sha256), timeout_s))

    def unpin(self, module_sha256: str, *, timeout_s: float | None = None) -> UnpinResponse:
        """Unpin a module: its entries live as long as others from now on.

        Raise ValueError for what is no digest.
        """
        return self._run(self._calls.unpin(unpin_request(module_sha256), timeout_s))

    def pins(self, *, timeout_s: float | None = None) -> ListPinsResponse:
        """Return the pinned modules, and what each tier has of them."""
        return self._run(self._calls.pins(timeout_s))

    def drain(
        self, grace_s: float | None = None, *, timeout_s: float | None = None
    ) -> DrainResponse:
        """End the daemon, as SIGTERM does. Return at once, before it has ended.

        New calls then raise ServerDraining. Running calls have `grace_s` seconds to finish;
        without it, the daemon's own shutdown_grace_s. A second call can only shorten the time:
        0 ends them at once. Raise ValueError for a negative grace.
        """
        return self._run(self._calls.drain(drain_request(grace_s), timeout_s))

    def health(self, service: str = "", *, timeout_s: float | None = None) -> str:
        """Return the health of the daemon or of one service: "SERVING", "NOT_SERVING", …

        Raise WasmkilnError with the code NOT_FOUND for a service that the daemon does not have.
        """
        return self._run(self._calls.health(service, timeout_s))
