"""``python -m tests.doubles.odd_uploads FILE …``: a wasmkilnd whose uploads end soon and may hang.

It keeps what no call brings for a second, and has no garbage collector. While FILE is there, a pipe
that nobody writes to, the disk does not take what uploads write.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import Any

from wasmkilnd.rpc import upload

from tests.e2e.programs import become_wasmkilnd


def main() -> None:
    """Run the daemon."""
    hangs, pwrite = Path(sys.argv.pop(1)), os.pwrite

    def written(file: int, data: Any, at: int) -> int:
        # The host store writes to the same disk: it has tests of its own.
        if "uploads" in Path(f"/proc/self/fd/{file}").readlink().parts:
            with contextlib.suppress(FileNotFoundError):
                os.close(os.open(hangs, os.O_RDONLY))  # As a disk does, it waits in the kernel.
        return pwrite(file, data, at)

    gc.disable()
    os.pwrite, upload.KEPT_S = written, 1.0
    become_wasmkilnd()


if __name__ == "__main__":
    main()
