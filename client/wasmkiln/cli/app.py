"""The program: its parser, what every command shares, and what each failure turns into.

A command is imported when it is run. It gets the `Session`, which has the options of every
command, calls the daemon through `session.client()`, and hands the answer to `session.emit` twice:
as a JSON document and as text. It returns its exit code, or nothing for 0.

The JSON of a message differs from protobuf's own, so that `jq` needs no conversions: 64-bit
numbers are numbers, a duration is its seconds under a name with `_s`, and every field is present.
NaN and infinity are null. A time outside of RFC 3339 is "@" and its seconds since 1970.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from enum import IntEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from wasmkiln.cli.connection import EVERYWHERE, fill, parameters, usage
from wasmkiln.cli.text import Printable, one_line, seconds

if TYPE_CHECKING:
    from wasmkiln import Client


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    DEADLINE = 4
    NOT_NOW = 5
    DENIED = 6
    INTERRUPTED = 130


# \b: click does not wrap this paragraph.
_EPILOG = """\b
Exit codes:
  0    done
  1    refused: a bad module, file or attestation, or a failure of the daemon
  2    wrong usage
  3    cannot connect to a daemon
  4    no answer within --timeout
  5    not now: queue full, no worker, draining, quarantined, unhealthy, a tier down, quota used up
  6    not let in: credentials are missing or do not count, or a role is missing
  130  interrupted"""

# By the names of classes in wasmkiln.errors, whose import takes as long as all else.
_CODES = {
    "ConnectionFailed": Exit.UNREACHABLE,
    "DeadlineExceeded": Exit.DEADLINE,
    "CompileQueueFull": Exit.NOT_NOW,
    "ServerDraining": Exit.NOT_NOW,
    "WorkerUnavailable": Exit.NOT_NOW,
    "ModuleQuarantined": Exit.NOT_NOW,
    "UploadInterrupted": Exit.NOT_NOW,
    "QuotaExceeded": Exit.NOT_NOW,
    "CredentialsMissing": Exit.DENIED,
    "CredentialsInvalid": Exit.DENIED,
    "RoleMissing": Exit.DENIED,
}


def exit_for(error: BaseException) -> Exit:
    """Return the code for a failure; REFUSED where it has no code of its own."""
    return _CODES.get(type(error).__name__, Exit.REFUSED)


class Session(dict[str, Any]):
    """One run: what the options of every command say, by name; it writes results and failures."""

    def client(self, **more: Any) -> Client:
        """Return a client for the options. Raise click.UsageError for invalid ones."""
        from wasmkiln import TLS, Client

        self._tell()
        files = [self.get(name, "") for name in ("ca_file", "cert_file", "key_file", "server_name")]
        for name in ("address", "profile", "token_file", "namespace", "timeout_s", "tls"):
            more[name] = self.get(name)
        with usage():
            return Client(**more | ({"tls": TLS(*files)} if any(files) else {}))

    def _tell(self) -> None:
        """Write to stderr what the client logs: that it tries again; with -v, all that it does."""
        import logging  # which few commands need

        class Told(logging.Handler):
            def emit(_, record: logging.LogRecord) -> None:  # noqa: N805
                ends = " (Ctrl-C ends it)" if record.levelname == "INFO" else ""
                self.note(record.getMessage() + ends)

        quiet = logging.CRITICAL if self.get("version") else logging.INFO
        told, log = Told(), logging.getLogger("wasmkiln")
        log.handlers[:], log.propagate = [told], False
        log.setLevel(logging.DEBUG if self.get("verbose") else quiet)

    def call(self, method: str, *arguments: Any, **more: Any) -> Any:
        """Return the daemon's answer to one call."""
        with self.client() as client:
            return getattr(client, method)(*arguments, **more)

    def emit(self, document: Any, *texts: str) -> None:
        """Write a result: the document with --json, else sentences and tables.

        It goes to stdout, unless an artifact does.
        """
        to_stderr = self.get("stdout_is_taken", False)
        if self.get("as_json"):
            click.echo(_dumps(document), err=to_stderr)
            return
        for text in filter(None, texts):
            shown = os.fsencode(text) if isinstance(text, Printable) else one_line(text)
            click.echo(shown, err=to_stderr)

    def note(self, sentence: str) -> None:
        """Write a sentence to stderr."""
        click.echo(one_line(sentence), err=True)

    def report(self, error: Exception, source: str | None = None) -> None:
        """Write a failure to stderr: a sentence, and with --json an object after it."""
        if isinstance(error, OSError) and error.filename is not None:
            # str(error) begins with errno; and the file may not be the source.
            self.note(f"error: {error.filename}: {error.strerror}")
        else:
            self.note(f"error: {source}: {error}" if source else f"error: {error}")
        self._as_object(error, source)

    def _as_object(self, error: Exception, source: str | None = None) -> None:
        if self.get("as_json"):
            click.echo(_dumps({"error": error_document(error, source)}), err=True)


def to_document(message: Any) -> dict[str, Any]:
    """Return a message as a dictionary that `json` accepts."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if hasattr(value, "DESCRIPTOR") and not message.HasField(field.name):
            value = None
        kind = field.message_type.full_name if field.message_type else ""
        name = f"{field.name}_s" if kind == "google.protobuf.Duration" else field.name
        document[name] = _value(value, field.enum_type)
    return document


def _value(value: Any, enum_type: Any) -> Any:
    if hasattr(value, "DESCRIPTOR"):
        kind = value.DESCRIPTOR.full_name
        if kind == "google.protobuf.Timestamp":
            try:
                return value.ToJsonString()
            except ValueError:
                return f"@{value.seconds}"
        return seconds(value) if kind == "google.protobuf.Duration" else to_document(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(sorted(value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_value(item, enum_type) for item in value]
    if enum_type is not None and value in enum_type.values_by_number:
        return enum_type.values_by_number[value].name
    return value


def error_document(error: Any, source: str | None = None) -> dict[str, Any]:
    """Return a failure for --json; `source` is the input that it belongs to."""
    is_ours = _is_ours(error)
    return {
        "source": source,
        "message": str(error),
        "code": error.code.name if is_ours else None,
        "reason": error.reason if is_ours else type(error).__name__,
        "metadata": error.metadata if is_ours else {},
        "retry_after_s": error.retry_after_s if is_ours else None,
        "field_violations": list(map(asdict, error.field_violations)) if is_ours else [],
    }


def _is_ours(error: Any) -> bool:
    """Return whether an error is a WasmkilnError, without an import of it."""
    return hasattr(error, "field_violations")


def _dumps(document: Any) -> str:
    """Return one line of JSON, in ASCII: a file's name may not be valid UTF-8."""
    return json.dumps(document, allow_nan=False)


_COMMANDS = [
    *("capabilities", "compile", "drain", "evict", "find-missing", "health", "host-file", "jobs"),
    *("load", "pin", "quarantine", "stats", "verify", "warm", "whoami"),
]


# With the import of grpc, within a second.
_VERSION_S = 0.5
# What commands and options were called until 0.7. These names still work, and no help shows them.
_OLD = {"engines": "capabilities", "path": "host-file"}
_OLD |= {"fast": "accept-fast", "no-cache": "skip-cache-lookup"}


class _Program(click.Group):
    """Import a command when it is run; turn its failure into a sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return _COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"wasmkiln.cli.{'warm' if cmd_name == 'warm' else 'commands'}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the command's name, into a Session."""
        ctx.ensure_object(Session)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit with its code or that of its failure."""
        session: Session = ctx.obj
        try:
            wants_version = session.get("version")
            code: int = (_version(session) if wants_version else super().invoke(ctx)) or Exit.OK
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            # The message may quote a file's name.
            error.message = one_line(error.message)  # type: ignore[misc]
            error.show()
            session._as_object(Exception(error.format_message()))
            code = error.exit_code
        except (KeyboardInterrupt, click.Abort):
            session.note("error: interrupted")
            code = Exit.INTERRUPTED
        except Exception as error:
            code = exit_for(error)
            try:
                sys.stdout.flush()
            except OSError:
                # Python would complain once more when it flushes stdout at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                code = Exit.OK  # the reader of our stdout has closed it, as `head` does
            elif _is_ours(error) or isinstance(error, OSError):
                session.report(error)
            else:  # a defect of the command
                if session.get("debug"):
                    sys.excepthook(type(error), error, error.__traceback__)
                session.report(RuntimeError(f"unexpected {type(error).__name__}: {error}"))
        raise click.exceptions.Exit(code)


def _version(session: Session) -> Exit:
    """Show the version of the client, and of a daemon that tells its own at once."""
    from wasmkiln import __version__

    daemon = ""
    with suppress(Exception), session.client() as client:  # whatever is wrong on the way there
        told = client.capabilities(timeout_s=_VERSION_S).version
        daemon = f"; the daemon at {client.address}, version {told}"
    click.echo(one_line(f"wasmkiln, version {__version__}{daemon}"))
    return Exit.OK


app = _Program(
    "wasmkiln",
    params=EVERYWHERE
    + parameters(
        "--version  Show the version of this command, and of a daemon that answers within 1 s.",
        {"expose_value": False, "callback": fill, "default": None},
    ),
    help="Compile WebAssembly modules once, in a wasmkiln daemon, and load them everywhere.",
    epilog=_EPILOG,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: _OLD.get(name, name),
    },
)
