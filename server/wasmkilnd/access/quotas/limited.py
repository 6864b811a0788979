"""The account of an identity with a quota: refuses what goes beyond its limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wasmkilnd import errors
from wasmkilnd.access.quotas.usage import CountingBill, Queued, Usage
from wasmkilnd.account import Account, Bill
from wasmkilnd.errors import WasmkilnError
from wasmkilnd.model import Limits, QuotaLimits
from wasmkilnd.reloadable import Reloadable

CALLS = "calls"
BYTES_IN_FLIGHT = "bytes_in_flight"
QUEUE_SHARE = "queue_share"
COMPILES = "compiles_per_minute"
CPU = "cpu_seconds_per_hour"
BYTES_KEPT = "bytes_kept"
KINDS = (CALLS, BYTES_IN_FLIGHT, QUEUE_SHARE, COMPILES, CPU, BYTES_KEPT)
"""Every kind of quota, under its name in the policy."""

# Nobody knows when a call will end.
_SOON_S = 1.0
_LEAST_RETRY_S = 0.1


class LimitedAccount(Account):
    """What one identity may use, and what it has used. For one event loop."""

    def __init__(
        self,
        limits: QuotaLimits,
        usage: Usage,
        queue: Reloadable[Limits],
        refused: Callable[[str], None],
    ) -> None:
        """``queue`` has the limits of an engine's queue; ``refused`` counts a kind's refusals."""
        self.limits = limits
        """Those of the policy now: replaced when it changes."""
        self.usage = usage
        self.refused = dict.fromkeys(KINDS, 0)
        """How often each kind refused it."""
        self._queue = queue
        self._count_refusal = refused

    def readings(self) -> Iterator[tuple[str, float, float]]:
        """Yield each kind that has a limit: its name, what is used, and the limit.

        Any thread may read.
        """
        limits, used, now_s = self.limits, self.usage, self.usage.clock()
        per_minute = limits.compiles_per_minute
        for kind, amount, limit in (
            (CALLS, used.calls, limits.calls),
            (BYTES_IN_FLIGHT, used.in_flight_bytes, limits.bytes_in_flight),
            (QUEUE_SHARE, self._largest_share(), limits.queue_share),
            (COMPILES, used.compiles.spent(per_minute, now_s) if per_minute else 0, per_minute),
            (CPU, used.cpu.total(now_s), limits.cpu_seconds_per_hour),
            (BYTES_KEPT, used.kept.total(now_s), limits.bytes_kept),
        ):
            if limit is not None:
                yield kind, amount, limit

    def enter(self) -> None:
        """Count a call. Raises QUOTA_EXCEEDED."""
        most, running = self.limits.calls, self.usage.calls
        if most is not None and running >= most:
            what = (
                f"cannot begin another call: {running} of your calls run, and your quota allows"
                f" {most} at once"
            )
            raise self._refusal(CALLS, what, _SOON_S)
        self.usage.calls += 1

    def leave(self) -> None:
        """Note that a call has ended."""
        self.usage.calls -= 1

    def hold(self, size_bytes: int) -> None:
        """Count bytes of a request. Raises QUOTA_EXCEEDED, but never for the only one."""
        most, held = self.limits.bytes_in_flight, self.usage.in_flight_bytes
        if most is not None and held and held + size_bytes > most:
            what = (
                f"cannot take {size_bytes:,} more bytes: your calls hold {held:,}, and your quota"
                f" allows {most:,} at once"
            )
            raise self._refusal(BYTES_IN_FLIGHT, what, _SOON_S)
        self.usage.in_flight_bytes += size_bytes

    def hold_more(self, size_bytes: int) -> None:
        """Count what a request that was let in takes besides."""
        self.usage.in_flight_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Stop counting bytes."""
        self.usage.in_flight_bytes -= size_bytes

    def start(self, size_bytes: int, *, compiles: bool, arrived: bool) -> Bill:
        """Return the bill of work on a module of ``size_bytes``. Raises QUOTA_EXCEEDED."""
        per_minute = self.limits.compiles_per_minute if compiles else None
        if refusal := self._used_up() or self._no_compile(per_minute):
            raise refusal
        if arrived:
            self.hold_more(size_bytes)
        else:
            self.hold(size_bytes)
        if per_minute is not None:
            self.usage.compiles.take(per_minute, self.usage.clock())
        return CountingBill(self.usage, size_bytes, per_minute is not None, self._place)

    def behind(self) -> Account | None:
        """Return who pays for a compile behind: this identity, as long as it has something left."""
        used_up = self._what_is_used_up(self.usage.clock())
        return None if used_up else _Behind(self.usage)

    def _what_is_used_up(self, now_s: float) -> str:
        """Return CPU or BYTES_KEPT if nothing is left of it, else an empty string."""
        cpu_s, kept_bytes = self.limits.cpu_seconds_per_hour, self.limits.bytes_kept
        if cpu_s is not None and self.usage.cpu.total(now_s) >= cpu_s:
            return CPU
        if kept_bytes is not None and self.usage.kept.total(now_s) >= kept_bytes:
            return BYTES_KEPT
        return ""

    def _used_up(self) -> WasmkilnError | None:
        limits, used, now_s = self.limits, self.usage, self.usage.clock()
        kind = self._what_is_used_up(now_s)
        if kind == CPU and limits.cpu_seconds_per_hour is not None:
            what = (
                f"cannot begin more work: your modules took {used.cpu.total(now_s):.1f} s of CPU"
                f" time within an hour, and your quota allows {limits.cpu_seconds_per_hour:g}"
            )
            wait_s = used.cpu.seconds_until_below(limits.cpu_seconds_per_hour, now_s)
            return self._refusal(CPU, what, wait_s)
        if kind == BYTES_KEPT and limits.bytes_kept is not None:
            what = (
                f"cannot store more: {used.kept.total(now_s):,.0f} bytes are kept for you, and"
                f" your quota allows {limits.bytes_kept:,}"
            )
            wait_s = used.kept.seconds_until_below(limits.bytes_kept, now_s)
            return self._refusal(BYTES_KEPT, what, wait_s)
        return None

    def _no_compile(self, per_minute: float | None) -> WasmkilnError | None:
        if per_minute is None:
            return None
        wait_s = self.usage.compiles.seconds_until_one(per_minute, self.usage.clock())
        what = f"cannot compile another module now: your quota allows {per_minute:g} per minute"
        return self._refusal(COMPILES, what, wait_s) if wait_s else None

    def _place(
        self, engine_id: str, size_bytes: int, wait_s: Callable[[], float]
    ) -> WasmkilnError | None:
        """Return QUOTA_EXCEEDED if one more job may not wait. A job alone always may."""
        share, queued = self.limits.queue_share, self.usage.queued.get(engine_id)
        if share is None or queued is None:
            return None
        if self._share(Queued(queued.jobs + 1, queued.size_bytes + size_bytes)) <= share:
            return None
        what = (
            f"cannot queue another compilation: {queued.jobs} of yours wait for {engine_id}, and"
            f" your quota allows {share:.0%} of its queue"
        )
        return self._refusal(QUEUE_SHARE, what, wait_s())

    def _largest_share(self) -> float:
        return max(map(self._share, list(self.usage.queued.values())), default=0.0)

    def _share(self, queued: Queued) -> float:
        limits = self._queue.current
        return max(
            queued.jobs / max(1, limits.queue_length),
            queued.size_bytes / max(1, limits.queue_bytes),
        )

    def _refusal(self, kind: str, what: str, retry_after_s: float) -> WasmkilnError:
        self.refused[kind] += 1
        self._count_refusal(kind)
        return errors.quota_exceeded(kind, what, max(_LEAST_RETRY_S, retry_after_s))


@dataclass(slots=True)
class _Behind(Account):
    """Pays for compiles that no caller waits for: they are charged, and not refused."""

    usage: Usage

    def start(self, size_bytes: int, *, compiles: bool, arrived: bool) -> Bill:
        """Return the bill of a compile behind."""
        return CountingBill(self.usage, 0, unused_compile=False, place=_any_place)


def _any_place(_: str, __: int, ___: Callable[[], float]) -> None:
    return None
