"""Which daemon of a fleet compiles an artifact."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from wasmkilnd.model import CacheKey
from wasmkilnd.wait_budget import WaitBudget


class Claim(Protocol):
    """One daemon's claim to compile one artifact.

    For the tasks of one flight. No method fails because the shared tier fails: the daemon then
    compiles by itself, so the same artifact may be compiled twice, but no call waits for a
    daemon that cannot be seen.

    The lease is taken once a worker is free, not before: a job that waits in this daemon's
    queue keeps no other daemon from compiling.
    """

    async def stored(self) -> None:
        """Return once another daemon has stored the artifact: the job needs no worker then."""
        ...

    async def take(self) -> bool:
        """Take the lease, so that other daemons wait until the artifact is stored.

        Return False if the artifact is stored already, or if another daemon compiles it.
        """
        ...

    async def wait_for_others(self) -> bool:
        """Wait while another daemon compiles; return whether the artifact is stored then."""
        ...

    def ignore_others(self) -> None:
        """Compile here from now on, whatever other daemons do: what they stored is no use."""
        ...

    def failed(self) -> None:
        """Tell other daemons, before the context ends, that the module does not compile."""
        ...


class Fleet(Protocol):
    """The daemons that share a tier. Safe for concurrent use from one event loop."""

    def claim(
        self, key: CacheKey, budget: WaitBudget, *, alone: bool = False
    ) -> AbstractAsyncContextManager[Claim]:
        """Return this daemon's claim to compile ``key``, which lasts as long as the context.

        Its requests to the shared tier together take no longer than ``budget`` has left. Other
        daemons learn how the context ends. With ``alone``, this daemon compiles whatever other
        daemons do, and they learn nothing of it.
        """
        ...
