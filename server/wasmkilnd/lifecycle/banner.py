"""The text that the daemon prints when it is ready."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.lifecycle.listening import Bound
from wasmkilnd.model import UnservedEngine
from wasmkilnd.settings import Settings
from wasmkilnd.settings_loader import LoadedSettings
from wasmkilnd.telemetry.logs import Writer

_SHOW_S = 2.0


def is_wanted(settings: Settings) -> bool:
    """Return whether somebody reads the banner: not a program that reads JSON."""
    if settings.banner != "auto":
        return settings.banner == "always"
    if settings.log_format == "auto":
        return sys.stdout.isatty() or sys.stderr.isatty()
    return sys.stdout.isatty() or settings.log_format == "text"


def banner(
    version: str,
    loaded: LoadedSettings,
    bound: Bound,
    admin_address: str,
    engines: EngineRegistry,
    unserved: Sequence[UnservedEngine],
    isolation: str,
    host_trouble: str,
    remote: str,
    *,
    asks: bool,
) -> str:
    """Return addresses, who may call, engines, tiers, and one command for another terminal.

    ``asks``: whether callers need an identity.
    """
    settings = loaded.settings
    rows = [("serving", ", ".join(bound.serving))]
    if bound.tokens:
        rows.append(("tokens", f"{', '.join(bound.tokens)} (no client certificates)"))
    if bound.operators:
        rows.append(("operator", f"{', '.join(bound.operators)} (AdminService)"))
    if bound.tls:
        certificates = "needs client certificates" if settings.tls_client_ca_file else ""
        rows.append(("TLS", ", ".join(filter(None, (f"{bound.tls} or newer", certificates)))))
    known = _credentials(settings) if asks else []
    rows.append(("callers", _callers(known) if asks else "everybody may do everything"))
    if admin_address:
        rows.append(("metrics", f"{admin_address}/metrics, /healthz, /readyz"))
        if not admin_address.startswith("unix:"):
            scheme = "https" if bound.tls else "http"
            rows.append(("status", f"{scheme}://{admin_address}/ in a browser"))
    for index, engine in enumerate(engines.served):
        default = ", default" if engine.id == engines.default else ""
        workers = f"{engine.pool.size} worker{'s' if engine.pool.size > 1 else ''}"
        rows.append(
            (
                "" if index else "engines",
                f"{engine.id} ({engine.capabilities.interpreter}, {workers}{default})",
            )
        )
    if not engines.served:
        rows.append(("engines", "none works: the daemon serves no call"))
    rows.extend(("", f"{one.id} is not served: {one.cause}") for one in unserved)
    if engines.served:
        rows.append(("jobs", isolation))
    files = settings.effective_host_store_bytes
    host = f"host store, {_size(files)}" if files else "no host store"
    if host_trouble:
        host = f"host store unusable: {host_trouble}"
    rows.append(("tiers", f"memory, {_size(settings.memory_bytes)}; {host}; {remote}"))
    rows.append(("state", str(settings.state_dir)))
    address = bound.serving[0]
    flag = "" if address == "127.0.0.1:50051" else f"--address {address} "
    if bound.tls and not address.startswith("unix:"):
        flag = f"--address {address} --ca-file CA.pem "
        if settings.tls_client_ca_file:
            flag += "--cert-file CERT.pem --key-file KEY.pem "
    if known and not (settings.tls_client_ca_file or address.startswith("unix:")):
        flag += "--token-file TOKEN "
    rows.append(("try", f"wasmkiln {flag}compile MODULE.wasm -o MODULE.cwasm"))
    body = "\n".join(f"  {name:<9}{text}" for name, text in rows)
    return f"wasmkilnd {version} is ready\n{body}"


def show(text: str) -> None:
    """Print the banner; give up after 2 s if nobody reads it."""
    if sys.stdout:  # the daemon may have been started without one
        writer = Writer(sys.stdout.fileno())
        writer.put(lambda _: text, {})
        writer.end(_SHOW_S)


def _credentials(settings: Settings) -> list[str]:
    known = {
        "a token": settings.has_tokens_file,
        "a JSON Web Token": bool(settings.jwt_issuer),
        "a client certificate": bool(settings.tls_client_ca_file),
    }
    return [what for what, there in known.items() if there]


def _callers(known: Sequence[str]) -> str:
    return f"need {' or '.join(known)}" if known else "need an identity that the policy names"


def _size(size_bytes: int) -> str:
    size: float = size_bytes
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size_bytes} B"
