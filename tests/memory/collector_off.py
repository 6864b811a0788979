"""``python -m tests.memory.collector_off serve …``: a daemon without a garbage collector."""

from __future__ import annotations

import gc

from tests.e2e.programs import become_wasmkilnd

if __name__ == "__main__":
    gc.disable()
    become_wasmkilnd()
