"""Limits that protect callers from each other, and a daemon that ends."""

from __future__ import annotations

from wasmkilnd.errors.core import Reason, WasmkilnError


def compile_queue_full(engine_id: str, waiting: int, retry_after_s: float) -> WasmkilnError:
    """The queue of the engine is full."""
    return _overloaded(
        "queue",
        f"{waiting} compilations already wait for {engine_id}",
        retry_after_s,
        engine=engine_id,
        waiting=waiting,
    )


def modules_held(engine_id: str, held_bytes: int, retry_after_s: float) -> WasmkilnError:
    """The modules of all work in progress are too large together."""
    return _overloaded(
        "queue",
        f"the modules of all work in progress already hold {held_bytes:,} bytes",
        max(1.0, retry_after_s),
        engine=engine_id,
    )


def deadline_too_near(engine_id: str, wait_s: float, left_s: float) -> WasmkilnError:
    """The call's deadline would pass before a worker is free."""
    return _overloaded(
        "deadline",
        f"a worker of {engine_id} would be free in about {wait_s:.1f} s,"
        f" and the call's deadline is in {max(0.0, left_s):.1f} s",
        wait_s,
        engine=engine_id,
        expected_wait_s=round(wait_s, 3),
    )


def too_many_calls(running: int, yours: int) -> WasmkilnError:
    """The daemon serves as many calls as it may, or too many of this caller."""
    return _overloaded(
        "calls", f"the daemon is serving {running} calls, {yours} of them yours", 1.0, calls=running
    )


def too_many_connections() -> WasmkilnError:
    """The daemon closes the call's connection to have some left for other hosts."""
    return _overloaded(
        "connections",
        "hardly any connections are left, and your host has most of them",
        1.0,
    )


def receiving_too_much(held_bytes: int) -> WasmkilnError:
    """Requests that are still arriving fill the memory set aside for them."""
    return _overloaded(
        "receive", f"requests that arrive slowly already hold {held_bytes:,} bytes", 1.0
    )


def sending_too_much(held_bytes: int) -> WasmkilnError:
    """Answers that callers do not read fill the memory set aside for them."""
    return _overloaded(
        "send", f"answers that callers have not read already hold {held_bytes:,} bytes", 1.0
    )


def out_of_descriptors() -> WasmkilnError:
    """The daemon has too many files and connections open to start a job."""
    return _overloaded(
        "descriptors", "the daemon has no file descriptors left for a compilation", 1.0
    )


def request_too_slow(limit_s: float) -> WasmkilnError:
    """The caller did not send its request in time."""
    return _overloaded("receive", f"the request did not arrive within {limit_s:g} s", 1.0)


def reader_too_slow(limit_s: float) -> WasmkilnError:
    """The caller did not read its answer in time."""
    return _overloaded("send", f"the caller did not read its answer for {limit_s:g} s", 1.0)


def _overloaded(
    limit: str, what: str, retry_after_s: float, **metadata: str | int | float
) -> WasmkilnError:
    """A limit that protects other callers is reached: the caller may try again later."""
    error = WasmkilnError(
        Reason.COMPILE_QUEUE_FULL,
        f"{what}: try again in {retry_after_s:.1f} s",
        retry_after_s=retry_after_s,
        limit=limit,
    )
    error.metadata |= {name: str(value) for name, value in metadata.items()}
    return error


def server_draining() -> WasmkilnError:
    """The daemon is shutting down."""
    return WasmkilnError(
        Reason.SERVER_DRAINING, "the daemon is shutting down: call another daemon, or try again"
    )
