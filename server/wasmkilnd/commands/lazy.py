"""A group of commands that are imported when they are asked for.

Each command imports what it works with. A daemon needs none of it, nor does one command need what
another does, and each import takes its part of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Knows its commands by the modules that they are in, under their own names."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **options: Any) -> None:
        """``modules`` has the module of each command, by its name."""
        super().__init__(*args, **options)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, imported or not."""
        return sorted({*super().list_commands(ctx), *self._modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; import it first."""
        if cmd_name in self._modules and cmd_name not in self.commands:
            self.add_command(getattr(import_module(self._modules[cmd_name]), cmd_name))
        return super().get_command(ctx, cmd_name)
