"""The modules that a client has loaded, of which it forgets the least recently used."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

# A module that nobody else holds is unloaded when it is forgotten.
LIMIT = 128
# How often a client that holds a fast compiler's code looks for optimised code.
LOOK_AGAIN_S = 1.0


@dataclass
class Loaded:
    """A module, and whether a fast compiler made it."""

    module: Any
    is_fast: bool
    looked_s: float = 0.0

    def look_again(self) -> bool:
        """Return whether to look for optimised code now; if so, not again for a second."""
        now_s = time.monotonic()
        if not self.is_fast or now_s - self.looked_s < LOOK_AGAIN_S:
            return False
        self.looked_s = now_s
        return True


class LoadedModules:
    """Modules by what was asked for, and into which engine. Safe for many threads at once."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        # The engine is kept with the module: its id is part of the key, and may not be reused.
        self._held: OrderedDict[tuple[Any, ...], tuple[Loaded, Any]] = OrderedDict()

    def get(self, request: tuple[Any, ...], into: Any) -> Loaded | None:
        """Return the module, or None."""
        key = *request, id(into)
        with self._lock:
            held = self._held.get(key)
            if held is None:
                return None
            self._held.move_to_end(key)
            return held[0]

    def put(self, request: tuple[Any, ...], into: Any, loaded: Loaded) -> Any:
        """Keep a module. Return it, or the one that another thread kept first.

        An optimised one takes the place of a fast one.
        """
        key = *request, id(into)
        with self._lock:
            held = self._held.get(key)
            if held is not None and (loaded.is_fast or not held[0].is_fast):
                return held[0].module
            loaded.looked_s = time.monotonic()
            self._held[key] = loaded, into
            self._held.move_to_end(key)
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
            return loaded.module
