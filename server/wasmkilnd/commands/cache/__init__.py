"""``wasmkilnd cache``: list, verify and move the values that daemons share.

| file | what |
|---|---|
| ``listing`` | ``ls`` and ``du`` |
| ``scrub``, ``recompile`` | ``scrub``: verify every value; compile artifacts again and compare |
| ``transfer`` | ``export`` and ``import`` |
| ``session`` | find and open the cache as ``serve`` would; flags and errors of all commands |
| ``choice``, ``text`` | which values a command is about; tables, numbers and progress bars |

``session.run`` loads the settings, opens the tier's server (the embedded one too, if no daemon
runs it) and turns failures into messages. The work itself is in ``maintenance``. The JSON output
is a public interface: add fields, never rename or remove one.
"""

from __future__ import annotations

import click

from wasmkilnd.commands.cache.listing import du, ls
from wasmkilnd.commands.cache.scrub import scrub
from wasmkilnd.commands.cache.transfer import export_values, import_values


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cache() -> None:
    """List, verify and move the values of the cache that daemons share in Redis.

    Each command finds the cache as `serve` does, by the same flags, variables and file. With the
    embedded server, each works whether a daemon runs or not.
    """


for command in (ls, du, scrub, export_values, import_values):
    cache.add_command(command)
