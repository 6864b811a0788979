"""What the site of the documentation is checked for, and how its links are made."""

from __future__ import annotations

import os
import re
from pathlib import Path

from scripts.site import ROOT, generated, mistakes, not_in_step, relinked, sources

GOOD = '<h1 id="top">A</h1><a href="b/c.html#there">c</a><a href="https://example.org/">out</a>'
GOOD_TOO = '<p id="there"></p><a href="../a.html">a</a><a href="../a.html#top">top</a>'


def found(folder: Path, page: str, style: str = "") -> list[str]:
    """Return the mistakes of a site of two pages and a style sheet."""
    (folder / "b").mkdir(exist_ok=True)
    (folder / "a.html").write_text(page)
    (folder / "b" / "c.html").write_text(GOOD_TOO)
    (folder / "s.css").write_text(style)
    return list(mistakes(folder))


def test_the_navigation_names_each_page_once() -> None:
    assert not_in_step() == []


def test_what_is_generated_tells_of_each_command_and_rpc_and_links_to_pages() -> None:
    pages = generated()
    assert "## Compile\n" in pages["reference/proto-module-service.md"]
    assert "## EvictRequest\n" in pages["reference/proto-admin-service.md"]
    assert "## ArtifactHeader\n" in pages["reference/proto-types.md"]
    assert "## wasmkiln compile\n" in pages["reference/wasmkiln.md"]
    assert "## wasmkilnd serve\n" in pages["reference/wasmkilnd.md"]
    places = {*sources().values(), *pages}
    for place, text in pages.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert os.path.normpath(Path(place).parent / target) in places


def test_a_site_whose_links_lead_somewhere_has_no_mistakes(tmp_path: Path) -> None:
    assert found(tmp_path, GOOD, 'a{background:url("data:image/png;base64,AA")}') == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = GOOD + '<a href="d.html">d</a><a href="b/c.html#here">c</a><img src="e.svg">'
    assert found(tmp_path, page) == [
        "a.html: d.html does not exist",
        "a.html: b/c.html#here has no such heading",
        "a.html: e.svg does not exist",
    ]


def test_what_a_browser_would_fetch_from_elsewhere_is_found(tmp_path: Path) -> None:
    page = GOOD + '<script src="//cdn.example.org/x.js"></script>'
    style = "@font-face{src:url(https://fonts.example.org/x.woff2)}"
    assert found(tmp_path, page, style) == [
        "a.html: fetches //cdn.example.org/x.js",
        "s.css: fetches url(https://fonts.example.org/x.woff2",
    ]


def test_links_fit_a_page_s_place_on_the_site() -> None:
    go = ROOT / "client" / "go" / "README.md"
    text = relinked(go, "how-to/go.md", sources())
    assert "](verify.md)" in text
    assert "](../reference/errors.md)" in text
    assert "../../docs" not in text


def test_a_link_to_a_file_that_is_no_page_becomes_its_name() -> None:
    install = ROOT / "docs" / "how-to" / "install.md"
    text = relinked(install, "how-to/install.md", sources())
    assert "`deploy/README.md`" in text
    assert "](../../deploy" not in text
