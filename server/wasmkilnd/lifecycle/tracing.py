"""Opens the traces if they are switched on; without them, nothing of OpenTelemetry is loaded."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkilnd.config.schema import Settings
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.reloadable import Reloadable

if TYPE_CHECKING:
    from wasmkilnd.telemetry.traces.open import Traces

# Of HTTP/2: lower case, and none that gRPC keeps for itself.
_HEADER = re.compile(r"(?!grpc-)[a-z0-9_.-]+")
_LONGEST = 8192


def open_tracing(reloadable: Reloadable[Settings], version: str) -> Traces | None:
    """Return the traces; None if they are switched off. May block. Raises CannotStart."""
    settings = reloadable.current
    if not settings.trace_endpoint:
        return None
    headers, ca_pem = check_tracing(settings)
    # Imported here: a daemon without traces loads no library for them.
    from wasmkilnd.telemetry.logs import pipeline
    from wasmkilnd.telemetry.traces import open as opening
    from wasmkilnd.telemetry.traces import spans

    pipeline.add_field("trace_id", spans.current_trace_id)
    return opening.open_traces(
        settings.trace_endpoint,
        version,
        lambda: reloadable.current.trace_sample_ratio,
        headers,
        ca_pem or None,
    )


def check_tracing(settings: Settings) -> tuple[dict[str, str], bytes]:
    """Return the headers and the CAs for the collector; none of both if traces are off.

    Raises CannotStart.
    """
    if not settings.trace_endpoint:
        return {}, b""
    needed = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")
    if not all(map(_is_installed, needed)):
        raise CannotStart(
            "cannot send traces (trace_endpoint): OpenTelemetry is not installed:"
            " pip install 'wasmkiln[server,trace]'"
        )
    ca_pem = _read("trace_ca_file", settings.trace_ca_file).encode()
    return _headers(settings.trace_headers_file), ca_pem


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _read(setting: str, path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as failure:
        why = getattr(failure, "strerror", "") or "it is not UTF-8 text"
        raise CannotStart(f"cannot read {path} ({setting}): {why}") from None


def _headers(path: str) -> dict[str, str]:
    found = {}
    for number, line in enumerate(_read("trace_headers_file", path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        # The line itself may hold a secret.
        if not colon or not _HEADER.fullmatch(name) or not value.isascii() or not value:
            raise CannotStart(
                f"cannot use line {number} of {path} (trace_headers_file): write `name: value`,"
                " in ASCII, with a name of letters, digits, - . or _"
            )
        found[name] = value
    if sum(len(name) + len(value) for name, value in found.items()) > _LONGEST:
        raise CannotStart(f"cannot use {path} (trace_headers_file): it has more than 8 KiB")
    return found
