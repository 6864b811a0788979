"""Under which names a port of this machine alone is asked: no website can give it one of its own.

A website that a person visits may have its name resolve to 127.0.0.1 from then on. The browser
then takes this port for a part of that website, whose scripts read what it answers. Such requests
carry the website's name in ``Host``. TLS needs no such check, since the browser does not accept a
certificate for another name; nor does a port that other machines reach, since they can ask it
themselves.
"""

from __future__ import annotations

import ipaddress
from http import HTTPStatus

from aiohttp import web

_REFUSED = (
    "cannot answer under this name, since websites could take it: ask for localhost or an IP"
    " address, and have a proxy ask so\n"
)


class Names:
    """Which requests name this machine: by an IP address or by localhost."""

    def refuse(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request under a strange name, None for any other.

        Browsers always send ``Host``: a request without it comes from none.
        """
        if all(self._ours(host) for host in request.headers.getall("Host", ())):
            return None
        return web.Response(text=_REFUSED, status=HTTPStatus.MISDIRECTED_REQUEST)

    def _ours(self, host: str) -> bool:
        name = _without_port(host).lower().rstrip(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and not name.endswith(":") else host
