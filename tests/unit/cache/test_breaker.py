"""The breaker: one outage opens it, a probe of its own closes it, callers never wait for it."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs
from wasmkilnd.cache.redis.breaker import Breaker
from wasmkilnd.errors import TierUnavailable


class Server:
    """What the breaker guards, with a clock that the test moves."""

    def __init__(self) -> None:
        self.up = True
        self.asked = 0
        self.probed = 0
        self.slept: list[float] = []
        self.now = 0.0
        self.turn = asyncio.Semaphore(0)
        self.breaker = Breaker(
            "redis",
            self.probe,
            lambda error: isinstance(error, OSError),
            lambda error: f"explained: {type(error).__name__}",
            first_wait_s=1,
            longest_wait_s=5,
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.turn.acquire()
        self.now += seconds

    async def probe(self) -> None:
        self.probed += 1
        if not self.up:
            raise OSError("secret")

    async def work(self) -> str:
        self.asked += 1
        if not self.up:
            raise OSError("secret")
        return "answer"

    async def refuse(self) -> str:
        raise ValueError("no")

    async def fails(self) -> None:
        with pytest.raises(TierUnavailable, match="explained: OSError"):
            await self.breaker.call(self.work)

    async def let_it_probe(self, times: int = 1) -> None:
        for _ in range(times):
            self.turn.release()
            for _ in range(5):
                await asyncio.sleep(0)


async def test_calls_pass_while_the_server_answers() -> None:
    server = Server()
    assert (server.breaker.up, server.breaker.detail) == (False, "not asked yet")
    assert await server.breaker.call(server.work) == "answer"
    assert (server.breaker.up, server.breaker.detail) == (True, "")


async def test_an_outage_opens_it_and_later_calls_never_reach_the_server() -> None:
    server = Server()
    server.up = False
    for _ in range(10):
        await server.fails()
    assert server.asked == 1
    assert server.breaker.detail == "explained: OSError"
    await server.breaker.close()


async def test_an_answer_that_says_no_is_no_outage() -> None:
    server = Server()
    with pytest.raises(TierUnavailable, match="explained: ValueError"):
        await server.breaker.call(server.refuse)
    assert server.breaker.up
    assert await server.breaker.call(server.work) == "answer"


async def test_the_probe_closes_it_waiting_longer_each_time() -> None:
    server = Server()
    server.up = False
    with capture_logs() as logs:
        await server.fails()
        await server.let_it_probe(4)
        assert server.slept == [1, 2, 4, 5, 5]
        server.up = True
        assert server.breaker.open
        await server.let_it_probe()
    assert server.breaker.up
    assert (server.asked, server.probed) == (1, 5)
    assert await server.breaker.call(server.work) == "answer"
    assert [log["event"] for log in logs] == ["tier is down", "tier is up again"]
    assert "secret" not in str(logs)


async def test_one_that_flaps_is_asked_less_and_less() -> None:
    server = Server()
    for _ in range(3):
        server.up = False
        await server.fails()
        server.up = True
        await server.let_it_probe()
    assert server.slept == [1, 2, 4]
    server.now += 6  # Longer than the longest wait: that was another outage.
    server.up = False
    await server.fails()
    await asyncio.sleep(0)
    assert server.slept == [1, 2, 4, 1]
    await server.breaker.close()


async def test_outages_of_many_calls_at_once_are_one() -> None:
    server = Server()
    hung = asyncio.Event()

    async def work() -> None:
        await hung.wait()
        raise OSError

    calls = [asyncio.create_task(server.breaker.call(work)) for _ in range(20)]
    await asyncio.sleep(0)
    with capture_logs() as logs:
        hung.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, TierUnavailable) for answer in answers)
    assert len(logs) == 1
    assert len(server.slept) == 1
    await server.breaker.close()


async def test_a_cancelled_call_says_nothing_about_the_server() -> None:
    server = Server()
    call = asyncio.create_task(server.breaker.call(lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not server.breaker.open
