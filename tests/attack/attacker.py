"""``python -m tests.attack.attacker NAME SECONDS < TARGET``: attack in one way for some seconds.

It prints as JSON how often it did each thing.
"""

from __future__ import annotations

import json
import sys
import time

from tests.attack.catalogue import WAYS
from tests.attack.target import Target


def main() -> None:
    """Attack, and print the counts."""
    target = Target.of_json(sys.stdin.read())
    done = WAYS[sys.argv[1]].attack(target, time.monotonic() + float(sys.argv[2]))
    print(json.dumps(dict(done)))


if __name__ == "__main__":
    main()
