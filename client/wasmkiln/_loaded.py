"""The modules that a client has loaded, of which it forgets the least recently used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

# A module that nobody else holds is unloaded when it is forgotten.
LIMIT = 128


class LoadedModules:
    """Modules by what was asked for, and into which engine. Safe for many threads at once."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        # The engine is kept with the module: its id is part of the key, and may not be reused.
        self._held: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = OrderedDict()

    def get(self, request: tuple[Any, ...], into: Any) -> Any:
        """Return the module, or None."""
        key = *request, id(into)
        with self._lock:
            held = self._held.get(key)
            if held is None:
                return None
            self._held.move_to_end(key)
            return held[0]

    def put(self, request: tuple[Any, ...], into: Any, module: Any) -> Any:
        """Keep a module. Return it, or the one that another thread kept first."""
        key = *request, id(into)
        with self._lock:
            held = self._held.setdefault(key, (module, into))
            self._held.move_to_end(key)
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
            return held[0]
