"""Generate the blocking client from the one for asyncio, so that it is written once.

In client/wasmkiln, ``python scripts/blocking_client.py`` writes client.py from aio.py,
_blocking_operations.py from _aio_operations.py, and _blocking_performer.py from _aio_performer.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

CLIENT = Path(__file__).resolve().parents[1] / "client" / "wasmkiln"

Rule = tuple[str, str]

# Code. (pattern, replacement): each applies to the whole text, after those before it.
CODE = [
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync([A-Z]\w*)", r"\1"),
]

# Documentation that is about event loops, and names.
CLIENT_RULES = [
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
    (r"_aio_operations\b", "_blocking_operations"),
    *CODE,
]
OPERATION_RULES = [
    (
        r'\A"""The methods of the client for asyncio that operate a daemon, .+\."""\n',
        '"""The methods that operate a daemon; generated from _aio_operations.py."""\n',
    ),
    (r"_aio_performer\b", "_blocking_performer"),
    *CODE,
]
PERFORMER_RULES = [
    (
        r'\A"""Performs the steps of flows in an event loop\."""\n',
        '"""Performs the steps of flows; generated from _aio_performer.py by `make client`."""\n',
    ),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    *CODE,
]
FILES = [
    ("aio.py", "client.py", CLIENT_RULES),
    ("_aio_operations.py", "_blocking_operations.py", OPERATION_RULES),
    ("_aio_performer.py", "_blocking_performer.py", PERFORMER_RULES),
]


def blocking(source: str, rules: Sequence[Rule]) -> str:
    """Return the blocking form of ``source``.

    Raise ValueError for a rule that matches nothing, and where a word of asyncio is left.
    """
    for pattern, replacement in rules:
        source, uses = re.subn(pattern, replacement, source)
        if not uses:
            raise ValueError(f"nothing matches {pattern!r}: correct or remove the rule")
    if left := re.search(r"async|await|event loop", source):
        raise ValueError(f"{left[0]!r} is left: add a rule")
    return source


if __name__ == "__main__":
    for written, generated, rules in FILES:
        try:
            text = blocking((CLIENT / written).read_text(), rules)
        except ValueError as error:
            sys.exit(f"cannot generate {generated} from {written}: {error}")
        (CLIENT / generated).write_text(text)
