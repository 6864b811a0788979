"""Who may read the pages of the admin server: every request passes the guard first."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Container
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
# A browser cannot send a token of its own accord: it asks a person for a name and a password.
_BROWSER_CHALLENGE = 'Basic realm="wasmkiln: any name, and a token as password", charset="UTF-8"'
_BASIC = "basic "


class Doorkeeper:
    """Asks the guard about each request, and answers those that it refuses."""

    def __init__(
        self, guard: Guard, auditor: Auditor, entrance: Entrance, browsed: Container[str] = ()
    ) -> None:
        """``browsed`` are the paths where a browser may ask a person for a token."""
        self._browsed = browsed
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
            self._guard.admit(
                page, self._entrance, lambda: _credentials(request, basic=page in self._browsed)
            )
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
        answer = web.Response(text=f"{refusal.message}\n", status=status)
        if status is HTTPStatus.UNAUTHORIZED:
            invalid = refusal.reason is Reason.CREDENTIALS_INVALID
            error = ', error="invalid_token"' if invalid else ""
            answer.headers.add("WWW-Authenticate", _CHALLENGE + error)
            if page in self._browsed:
                answer.headers.add("WWW-Authenticate", _BROWSER_CHALLENGE)
        if refusal.retry_after_s is not None:
            answer.headers["Retry-After"] = str(max(1, round(refusal.retry_after_s)))
        return answer


def _page(request: web.Request) -> str:
    """Return the path of the page that would be served; of no page, the path that was sent."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else request.path


def _credentials(request: web.Request, *, basic: bool) -> Credentials:
    transport = request.transport
    certificate = transport.get_extra_info("client_certificate", b"") if transport else b""
    # Of two, a proxy may have checked the other one. Together they are no token.
    authorization = ", ".join(request.headers.getall("Authorization", ()))
    return Credentials(_bearer(authorization) if basic else authorization, certificate)


def _bearer(authorization: str) -> str:
    """Return what a browser sent for a person as if it were a token; all else as it is."""
    if not authorization.lower().startswith(_BASIC):
        return authorization
    try:
        pair = base64.b64decode(authorization[len(_BASIC) :].strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return authorization
    return f"Bearer {pair.partition(':')[2]}"


def _peer(request: web.Request) -> str:
    transport = request.transport
    name = transport.get_extra_info("peername") if transport else None
    if not isinstance(name, tuple):
        return "unix"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
