"""The folders of a state directory that no group may enter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wasmkilnd.ownership import take_back
from wasmkilnd.settings import Settings

_PRIVATE = ("access", "daemons", "keys", "pins", "redis", "tls", "uses")


def take_back_private(settings: Settings) -> Sequence[tuple[Path, int]]:
    """Make this user's alone again what a container platform let the volume's group write to.

    Return where something was taken, and of how many files. May block; raise nothing.
    """
    private = {settings.state_dir / name for name in _PRIVATE} | {settings.effective_keys_dir}
    taken = ((folder, take_back(folder, private=True)) for folder in sorted(private))
    return [(folder, files) for folder, files in taken if files]
