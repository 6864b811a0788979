"""Reads a dashboard as Grafana's schema has it; runs in the environment that has the schema.

Reads the dashboard as JSON from standard input, and writes a list of what the schema does not know
of it: a field that is spelled wrong, or stands where none belongs, is lost on the way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def main() -> None:
    """Write what is lost."""
    register_default_plugins()
    given = json.load(sys.stdin)
    read = json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder))
    json.dump(list(lost(given, read, "")), sys.stdout)


def lost(given: Any, read: Any, where: str) -> Iterator[str]:
    """Yield the places at which ``read`` is not what was ``given``, apart from defaults."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from lost(value, read.get(key), f"{where}/{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from lost(one, other, f"{where}/{number}")
    elif given != read:
        yield where


main()
