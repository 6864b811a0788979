"""Threads for disks: what they do, and that they keep nothing from ending."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from wasmkilnd.files.threads import Threads, finished, wait_at_most

from tests.doubles.until import until

HANGS = """
import asyncio, threading
from wasmkilnd.files.threads import Threads, on_disk

async def main():
    begun, never = threading.Event(), threading.Event()
    hanging = asyncio.create_task(on_disk(lambda: begun.set() or never.wait()))
    job = Threads(1, "own").submit(never.wait)
    while not begun.is_set():
        await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_a_job_that_hangs_does_not_keep_a_program_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], check=False, timeout=60, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_another_thread_begins_only_where_none_is_free() -> None:
    threads, all_run = Threads(3, "three"), threading.Barrier(3)
    one = {await asyncio.wrap_future(threads.submit(threading.get_ident)) for _ in range(100)}
    assert len(one) == 1
    for _ in range(2):
        beside = [asyncio.wrap_future(threads.submit(all_run.wait, 60)) for _ in range(3)]
        assert {await each for each in beside} == {0, 1, 2}
    threads.shutdown()


async def test_they_end_after_what_waits() -> None:
    threads = Threads(2, "two")

    def alive() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("two-")]

    assert not alive()
    go_on = threading.Event()
    waiting = [threads.submit(go_on.wait), *(threads.submit(bool, n) for n in range(3))]
    threads.shutdown()
    go_on.set()
    assert [await asyncio.wrap_future(each) for each in waiting] == [True, False, True, True]
    await until(lambda: not alive())


async def test_what_waits_can_be_dropped_and_what_runs_ends() -> None:
    threads, begun, go_on = Threads(1, "one"), threading.Event(), threading.Event()

    def hang() -> str:
        begun.set()
        go_on.wait()
        return "done"

    running = threads.submit(hang)
    await until(begun.is_set)
    waiting = threads.submit(int)
    threads.shutdown(cancel_futures=True)
    assert waiting.cancelled()
    go_on.set()
    assert await asyncio.wrap_future(running) == "done"


async def test_a_failure_is_that_of_the_job() -> None:
    threads = Threads(1, "one")
    with pytest.raises(ZeroDivisionError):
        await asyncio.wrap_future(threads.submit(divmod, 1, 0))
    threads.shutdown()


async def test_where_no_more_threads_can_start_the_others_do_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, go_on = Threads(2, "few"), threading.Event()
    first = threads.submit(go_on.wait)

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        second = threads.submit(int)
        with pytest.raises(RuntimeError):
            Threads(1, "none").submit(int)
    assert threads.submit(threading.current_thread).result(10).name.startswith("few-")
    assert second.result(10) == 0
    go_on.set()
    assert first.result(10)
    threads.shutdown()


async def test_whoever_waits_leaves_the_others_their_future() -> None:
    loop = asyncio.get_running_loop()
    others = loop.create_future()
    await wait_at_most(others, 0.01)
    leaving = asyncio.create_task(wait_at_most(others, 60))
    staying = asyncio.create_task(wait_at_most(others, float("inf")))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait((leaving,))
    assert leaving.cancelled()
    assert not others.done()
    assert not staying.done()
    others.set_exception(OSError("it is not raised here"))
    await staying
    await wait_at_most(others, 60)
    assert isinstance(others.exception(), OSError)


async def test_a_job_has_as_long_as_its_time_grows() -> None:
    threads, go_on, asked = Threads(1, "one"), threading.Event(), list[float]()

    def until_s() -> float:
        asked.append(time.monotonic())
        if len(asked) == 3:
            go_on.set()
        return asked[0] + 0.02 * len(asked) if len(asked) < 3 else float("inf")

    assert await finished(threads.submit(go_on.wait), until_s)
    never = threads.submit(threading.Event().wait, 1)
    assert not await finished(never, lambda: time.monotonic() - 1)
    threads.shutdown()
