"""The ``wasmkilnd`` command: parse, load the configuration, run; and all exit codes."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import click

from wasmkilnd.settings_loader import ConfigError, FlagValue, is_foreseen, load, options

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_ELSEWHERE = ("cache", "engine", "keys", "reload", "tls", "token")

# The one cipher suite for TLS 1.2 that no connection can use without a pre-shared key. The suites
# of TLS 1.3 are not part of this list, and always there.
_ONLY_TLS_1_3 = "ECDHE-PSK-AES128-CBC-SHA"


def main() -> None:
    """Run the command. Print every failure as one sentence on standard error."""
    try:
        command(prog_name="wasmkilnd", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(EXIT_USAGE)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output closed it. Python would complain again when it flushes
        # standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ModuleNotFoundError:
        raise  # ``entry`` says which extra brings what is missing.
    except Exception as failure:
        if is_foreseen(failure):
            _fail(str(failure), getattr(failure, "exit_code", EXIT_FAILED))
        import structlog

        structlog.get_logger("wasmkilnd").error("the daemon failed", exc_info=failure)
        _fail(f"the daemon failed ({type(failure).__name__}): this is a defect", EXIT_FAILED)


class _Commands(click.Group):
    """Imports a command when it is asked for.

    A daemon needs none of them, nor does one need what another does, and each import takes its part
    of a second.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, imported or not."""
        return sorted({*self.commands, *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; import it first."""
        if cmd_name in _ELSEWHERE and cmd_name not in self.commands:
            self.add_command(getattr(import_module(f"wasmkilnd.commands.{cmd_name}"), cmd_name))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("wasmkiln"), prog_name="wasmkilnd")
def command() -> None:
    """Validate, compile and cache WebAssembly modules for services in any language."""


@command.command()
@options
def serve(flags: Mapping[str, FlagValue], config: Path | None) -> None:
    """Serve in the foreground until SIGTERM or Ctrl-C."""
    read = partial(load, flags, os.environ, config)
    loaded = read()
    if loaded.settings.tls_cert_file and loaded.settings.tls_min_version == "1.3":
        # gRPC has no setting for the lowest version of TLS: it looks here when it is imported.
        os.environ["GRPC_SSL_CIPHER_SUITES"] = _ONLY_TLS_1_3
    # What is imported stays, so there is nothing to collect until the daemon is built: looking
    # takes a sixth of the time.
    gc.disable()
    from wasmkilnd.app import run

    asyncio.run(run(loaded, read))


@command.command(name="config")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
@click.option("--reference", is_flag=True, help="Print the documentation of every setting.")
@options
def show_config(
    flags: Mapping[str, FlagValue], config: Path | None, as_json: bool, reference: bool
) -> None:
    """Print every setting, where its value came from, and who may do what.

    Exit with 2, and a sentence, for what `serve` could not use: directories, keys, certificates,
    passwords, tokens, engines, addresses; and what the object store refuses.
    """
    from wasmkilnd import settings_loader as show
    from wasmkilnd.commands.shared import ready
    from wasmkilnd.lifecycle.check_config import check

    if reference:
        click.echo(show.reference(), nl=False)
        return
    try:
        loaded = load(flags, os.environ, config)
        access = check(ready(loaded.settings))
    except Exception as failure:
        if not is_foreseen(failure):
            raise
        raise ConfigError(str(failure)) from None
    if as_json:
        click.echo(show.as_json(loaded))
    else:
        click.echo(f"{show.render(loaded)}{access}")


def _fail(message: str, code: int) -> None:
    from wasmkilnd.telemetry.logs import is_journal, marked

    message = f"error: {message}"
    click.echo(marked(message, "error") if is_journal(sys.stderr) else message, err=True)
    sys.exit(code)
