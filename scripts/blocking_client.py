"""Generate the blocking client from the one for asyncio, so that it is written once.

``python scripts/blocking_client.py`` writes client/wasmkiln/client.py, from aio.py beside it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "client" / "wasmkiln"

# (pattern, replacement): each applies to the whole text, after those before it.
RULES = [
    # Documentation that is about event loops.
    (
        r'\A"""The client for asyncio\."""\n',
        '"""The blocking client, generated from aio.py: edit that and run `make client`."""\n',
    ),
    (
        r"daemon from one event loop; safe for use by many of its tasks at once\.",
        "daemon; safe for use by many threads at once.",
    ),
    (r"    Make it inside or outside of the loop\.(?:.+\n)+\n", ""),
    (r"is called in the event loop\.", "is called in this thread."),
    # Code.
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
]


def blocking(source: str) -> str:
    """Return the blocking form of ``source``.

    Raise ValueError for a rule that matches nothing, and where a word of asyncio is left.
    """
    for pattern, replacement in RULES:
        source, uses = re.subn(pattern, replacement, source)
        if not uses:
            raise ValueError(f"nothing in aio.py matches {pattern!r}: correct or remove the rule")
    if left := re.search(r"async|await|event loop", source):
        raise ValueError(f"{left[0]!r} is left: add a rule")
    return source


if __name__ == "__main__":
    try:
        text = blocking((CLIENT / "aio.py").read_text())
    except ValueError as error:
        sys.exit(f"cannot generate client.py: {error}")
    (CLIENT / "client.py").write_text(text)
