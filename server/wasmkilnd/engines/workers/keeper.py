"""Keep a place in a pool filled: start a worker, wait for its end, and start the next one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog

from wasmkilnd.engines.workers.process import Worker

log = structlog.get_logger("wasmkilnd.engines")

_FIRST_RESTART_DELAY_S = 0.1
_MAX_RESTART_DELAY_S = 30.0
_HEALTHY_LIFE_S = 5.0
# Jobs do not wait for a worker whose start is further off than this.
_SHORT_DELAY_S = 1.0


# The pool is a WorkerPool, whose module imports this one.
async def keep_filled(pool: Any, worker: Worker | None) -> None:
    """Keep one place filled until cancelled, at first with ``worker`` if there is one.

    A worker that does not start, or ends soon, is replaced after a delay that doubles each time:
    starting workers must not keep the machine busy.
    """
    delay_s = _FIRST_RESTART_DELAY_S
    while True:
        try:
            worker = worker or await pool.start_worker()
        except Exception as failure:  # Whatever it is, the place is to be filled.
            pool.workers_missing(str(failure))
            log.error(
                "worker does not start",
                engine=pool.engine_id,
                cause=str(failure),
                retry_in_s=delay_s,
            )
        else:
            began = time.monotonic()
            pool.worker_started(worker)
            try:
                await worker.wait()
            finally:
                pool.worker_ended(worker)
                await worker.kill()
            pool.worker_replaced()
            log.warning("worker replaced", engine=pool.engine_id, pid=worker.pid)
            worker = None
            if time.monotonic() - began > _HEALTHY_LIFE_S:
                delay_s = _FIRST_RESTART_DELAY_S
                continue
            if delay_s > _SHORT_DELAY_S:
                pool.workers_missing()
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, _MAX_RESTART_DELAY_S)
