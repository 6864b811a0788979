"""A daemon without a garbage collector that reports what only a collector would free.

Run as ``python -m tests.memory.collector_off serve …``. At SIGUSR1, and at its end, it writes what
it found to the file that WASMKILN_TEST_GARBAGE names, and only then frees it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.e2e.programs import become_wasmkilnd

_LARGE_BYTES = 64 * 1024


def _large_buffers(holders: Iterable[Any]) -> Iterator[str]:
    """Describe the large buffers that ``holders`` keep."""
    for holder in holders:
        for held in gc.get_referents(holder):
            if isinstance(held, bytes | bytearray) and len(held) >= _LARGE_BYTES:
                yield f"{type(held).__name__} of {len(held)} bytes, held by {_words(holder)}"


def _frames(failures: Iterable[Any]) -> Iterator[str]:
    """Describe the exceptions that still hold frames of the daemon."""
    for failure in failures:
        trace = failure.__traceback__ if isinstance(failure, BaseException) else None
        while trace is not None:
            if "wasmkilnd" in trace.tb_frame.f_code.co_filename:
                yield f"{_words(failure)}, with frame {_words(trace.tb_frame)}"
            trace = trace.tb_next


def _home(one: Any) -> str:
    """Return the file or module that ``one`` comes from."""
    one = getattr(one, "__func__", one)
    for name in ("f_code", "cr_code", "gi_code", "ag_code", "__code__"):
        if isinstance(code := getattr(one, name, None), types.CodeType):
            return code.co_filename
    return type(one).__module__ or ""


def _words(one: Any) -> str:
    name = getattr(one, "__qualname__", "")
    if isinstance(one, types.FrameType):
        name = f"{one.f_code.co_qualname}:{one.f_lineno}"
    elif isinstance(one, BaseException):
        name = str(one)[:100]
    return f"{type(one).__module__}.{type(one).__qualname__} {name}".strip()


def _report(*_: object) -> None:
    alive = gc.get_objects()
    kept = [*_large_buffers(alive), *_frames(alive)]
    del alive
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = list(gc.garbage)
    gc.garbage.clear()
    cycles = [_words(one) for one in found if "wasmkilnd" in _home(one)]
    told = {"cycles": [*cycles, *_large_buffers(found)], "kept": kept}
    del found
    gc.collect()
    target = Path(os.environ["WASMKILN_TEST_GARBAGE"])
    target.with_suffix(".new").write_text(json.dumps(told))
    target.with_suffix(".new").rename(target)


if __name__ == "__main__":
    gc.disable()
    signal.signal(signal.SIGUSR1, _report)
    try:
        become_wasmkilnd()
    finally:
        _report()
