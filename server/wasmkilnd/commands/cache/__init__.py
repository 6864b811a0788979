"""``wasmkilnd cache``: look into the shared tier, verify it, and move it."""

from __future__ import annotations

import click

from wasmkilnd.commands.cache.listing import du, ls
from wasmkilnd.commands.cache.scrub import scrub
from wasmkilnd.commands.cache.transfer import export_values, import_values


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cache() -> None:
    """Look into the cache that daemons share in Redis, verify it, and move it.

    All find the cache as `serve` does: by the same flags, variables and file. With the
    embedded server, they work whether a daemon runs or not.
    """


for command in (ls, du, scrub, export_values, import_values):
    cache.add_command(command)
