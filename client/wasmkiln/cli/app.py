"""The group of commands, and what each failure turns into: a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from wasmkiln import __version__
from wasmkiln._untrusted import one_line
from wasmkiln.cli.commands.compile import compile_
from wasmkiln.cli.commands.drain import drain
from wasmkiln.cli.commands.engines import engines
from wasmkiln.cli.commands.evict import evict
from wasmkiln.cli.commands.find_missing import find_missing
from wasmkiln.cli.commands.health import health
from wasmkiln.cli.commands.load import load
from wasmkiln.cli.commands.path import path
from wasmkiln.cli.commands.pin import pin
from wasmkiln.cli.commands.profiles import profiles
from wasmkiln.cli.commands.quarantine import quarantine
from wasmkiln.cli.commands.stats import stats
from wasmkiln.cli.commands.verify import verify
from wasmkiln.cli.commands.warm import warm
from wasmkiln.cli.commands.whoami import whoami
from wasmkiln.cli.connection_options import connection_options
from wasmkiln.cli.exits import EPILOG, Exit, exit_for
from wasmkiln.cli.json_output import dumps, error_document
from wasmkiln.cli.session import Session
from wasmkiln.errors import WasmkilnError


class Commands(click.Group):
    """Turn every failure of a command into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit with the code of its failure."""
        session = ctx.ensure_object(Session)
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            # The message may quote a file's name.
            error.message = one_line(error.message)  # type: ignore[misc]
            error.show()
            if session.as_json:
                click.echo(dumps(error_document(Exception(error.format_message()))), err=True)
            code = Exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            session.note("error: interrupted")
            code = Exit.INTERRUPTED
        except BrokenPipeError:
            # The reader of our stdout has closed it, as `head` does. Python would complain once
            # more when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.OK
        except (WasmkilnError, OSError) as error:
            session.report(error)
            code = exit_for(error)
        except Exception as error:  # a defect of the client: still no traceback
            session.report(RuntimeError(f"unexpected {type(error).__name__}: {error}"))
            code = Exit.REFUSED
        raise click.exceptions.Exit(code)


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@connection_options
@click.version_option(__version__, prog_name="wasmkiln")
def app() -> None:
    """Compile WebAssembly modules once, in a wasmkiln daemon, and load them everywhere."""


for command in (
    *(load, compile_, path, stats, engines, find_missing, evict, warm, verify, health, whoami),
    *(pin, quarantine, drain, profiles),
):
    app.add_command(command)
