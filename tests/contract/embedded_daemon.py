"""A process that uses the embedded server as a daemon does. Obeys words on its standard input.

python embedded_daemon.py STATE_DIR LIMIT_BYTES
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import structlog
from wasmkilnd.cache.embedded import EmbeddedServer, EmbeddedUnavailable


def main() -> None:
    """Do what each line says, and print the answer as a line of JSON."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    server = EmbeddedServer(Path(sys.argv[1]), int(sys.argv[2]))
    actions = {"start": server.start, "stop": server.stop}
    for line in sys.stdin:
        try:
            answer = {"ok": asyncio.run(actions[line.strip()]())}
        except EmbeddedUnavailable as failure:
            answer = {"failure": str(failure)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
