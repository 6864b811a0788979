"""The status page: what a person looks at first, at / of the admin port.

=============  ===========================================================================
``page.html``  headings, tables without rows, and the template of a chart
``page.js``    asks for /status.json, keeps the last minutes, and draws them
``page.css``   how it looks, on a phone and in the dark, too
=============  ===========================================================================

They are served as they are. The script asks every 2 s while the page is in sight, and the daemon
makes /status.json then (``lifecycle.status_page``): while nobody looks, the page costs nothing. Of
a daemon that is gone it shows the last figures, and says so.

Nothing on the page can change the daemon. What callers sent is text: the script makes elements and
sets their text, and the browser refuses whatever else would make markup or run a script.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

JSON: Final = "/status.json"
_PAGE = "page.html", "text/html; charset=utf-8"
# What is served, by path: content, and type.
FILES: Final[Mapping[str, tuple[bytes, str]]] = {
    path: (Path(__file__).with_name(name).read_bytes(), kind)
    for path, (name, kind) in {
        "/": _PAGE,
        "/status": _PAGE,
        "/status/page.css": ("page.css", "text/css; charset=utf-8"),
        "/status/page.js": ("page.js", "text/javascript; charset=utf-8"),
        "/status/icon.svg": ("icon.svg", "image/svg+xml"),
    }.items()
}
PATHS: Final = {JSON, *FILES}
# What comes with each of them.
HEADERS: Final = {
    # Nothing comes from elsewhere, nothing goes elsewhere, and no other site shows a page in its
    # own. No style and no script is written into a page, so that nothing injected could run.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
