"""Who may read the pages of the admin server: every request passes the guard first."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from wasmkilnd.errors import Reason, WasmkilnError, forget_frames
from wasmkilnd.model import Credentials, Entrance
from wasmkilnd.ports import AuditEvent, AuditLine, Auditor, Guard

_STATUS = {
    Reason.CREDENTIALS_MISSING: HTTPStatus.UNAUTHORIZED,
    Reason.CREDENTIALS_INVALID: HTTPStatus.UNAUTHORIZED,
    Reason.QUOTA_EXCEEDED: HTTPStatus.TOO_MANY_REQUESTS,
}
_CHALLENGE = 'Bearer realm="wasmkiln"'


class Doorkeeper:
    """Asks the guard about each request, and answers those that it refuses."""

    def __init__(self, guard: Guard, auditor: Auditor, entrance: Entrance) -> None:
        self._guard = guard
        self._auditor = auditor
        self._entrance = entrance

    def refuse(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request that may not be made, None for one that may.

        A path that is no page is one that the guard does not know, so it learns nothing from that
        whom the guard refuses.
        """
        page = _page(request)
        try:
            self._guard.admit(page, self._entrance, lambda: _credentials(request))
        except WasmkilnError as refusal:
            forget_frames(refusal)
            return self._refused(request, page, refusal)
        return None

    def _refused(self, request: web.Request, page: str, refusal: WasmkilnError) -> web.Response:
        status = _STATUS.get(refusal.reason, HTTPStatus.FORBIDDEN)
        if self._auditor.on:
            line = AuditLine(
                AuditEvent.REFUSAL,
                refusal.identity,
                peer=_peer(request),
                method=page,
                code=str(status.value),
                reason=refusal.reason.value,
            )
            self._auditor.write(line)
        headers = {}
        if status is HTTPStatus.UNAUTHORIZED:
            invalid = refusal.reason is Reason.CREDENTIALS_INVALID
            error = ', error="invalid_token"' if invalid else ""
            headers["WWW-Authenticate"] = _CHALLENGE + error
        if refusal.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(refusal.retry_after_s)))
        return web.Response(text=f"{refusal.message}\n", status=status, headers=headers)


def _page(request: web.Request) -> str:
    """Return the path of the page that would be served; of no page, the path that was sent."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else request.path


def _credentials(request: web.Request) -> Credentials:
    transport = request.transport
    certificate = transport.get_extra_info("client_certificate", b"") if transport else b""
    # Of two, a proxy may have checked the other one. Together they are no token.
    return Credentials(", ".join(request.headers.getall("Authorization", ())), certificate)


def _peer(request: web.Request) -> str:
    transport = request.transport
    name = transport.get_extra_info("peername") if transport else None
    if not isinstance(name, tuple):
        return "unix"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
