"""``python -m tests.attack.attacker NAME SECONDS < TARGET``: one way to attack, for so long.

It prints as JSON how often it did what.
"""

from __future__ import annotations

import json
import sys
import time

from tests.attack.catalogue import WAYS
from tests.attack.target import Target


def main() -> None:
    """Attack, and say what came of it."""
    target = Target.of_json(sys.stdin.read())
    done = WAYS[sys.argv[1]].attack(target, time.monotonic() + float(sys.argv[2]))
    print(json.dumps(dict(done)))


if __name__ == "__main__":
    main()
