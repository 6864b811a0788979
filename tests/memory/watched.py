"""A daemon whose reference cycles are counted."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually
from tests.e2e.programs import inside

HELD = ("calls", "flights", "send_bytes", "send_pinned_bytes", "receive_bytes")
# After its last answer a call is logged, and grpcio puts it away.
_AFTERMATH_S = 0.3


class Watched(Daemon):
    """A daemon without a garbage collector."""

    def __init__(
        self, state_dir: Path, flags: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> None:
        self._report = state_dir.parent / f"{state_dir.name}.garbage.json"
        super().__init__(
            state_dir,
            flags,
            {**(environ or {}), "WASMKILN_TEST_GARBAGE": str(self._report)},
            inside("tests.memory.collector_off"),
        )
        self.look()  # What the start left behind does not count.

    def quiet(self) -> bool:
        """Return whether nothing is under way."""
        return all(self.metric(name) == 0 for name in HELD)

    def look(self) -> tuple[Counter[str], Counter[str]]:
        """Return what only a collector would free, and which large buffers are still alive."""
        eventually(self.quiet, "something is held for nobody")
        time.sleep(_AFTERMATH_S)
        self._report.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        eventually(self._report.exists, "the daemon reports no garbage")
        told = json.loads(self._report.read_text())
        return Counter(told["cycles"]), Counter(told["kept"])

    @contextmanager
    def leaves_nothing(self, *, kept: bool = False) -> Iterator[None]:
        """Fail if the work in the context leaves a cycle, or (unless ``kept``) a large buffer."""
        self.look()
        yield
        cycles, buffers = self.look()
        left = cycles.most_common() + ([] if kept else buffers.most_common())
        if left:
            raise AssertionError("\n".join(f"{count} x {what}" for what, count in left))
