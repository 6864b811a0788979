"""Files and headings that the documentation names exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.architecture.imports import ROOT, shown

PAGES = sorted(
    page
    for folder in (".", "docs", "docs/*", "deploy", "tests/corpus")
    for page in ROOT.glob(f"{folder}/*.md")
    if page.name != "CHANGELOG.md"  # It tells of files that there were.
)
# Where a path that a page names may begin, beside the page's own folder.
BEGINNINGS = ("", "server/wasmkilnd", "client/wasmkiln", "tests")
TOP = ("bench", "client", "deploy", "docs", "protos", "scripts", "server", "tests")
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"(?:[\w*.-]+/)*[\w*-]+\.(?:py|md|yml|service)")
_FOLDER = re.compile(rf"(?:{'|'.join(TOP)})(?:/[\w.-]+)*/?")


def test_what_a_page_names_exists() -> None:
    missing = [f"{shown(page)}: {name}" for page in PAGES for name in wrong_names(page)]
    assert missing == []


def test_pages_that_code_and_configuration_name_exist() -> None:
    named = {
        f"{shown(file)}: {name}"
        for file in files()
        if shown(file).startswith(("deploy/", "server/", "scripts/"))
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(errors="replace"))
        if not (ROOT / name).exists()
    }
    assert named == set()


def wrong_names(page: Path) -> list[str]:
    """Return the files, folders and links of a page that do not exist."""
    text = page.read_text()
    missing = [name for name in paths_in(text) if not exists(name, page)]
    return [*missing, *dead_links(page, text)]


def test_prose_stays_within_a_hundred_columns() -> None:
    found = [f"{shown(page)}: {line}" for page in PAGES for line in too_wide(page.read_text())]
    assert found == []


def test_pages_stay_short() -> None:
    lengths = {page: len(page.read_text().splitlines()) for page in (ROOT / "docs").rglob("*.md")}
    assert lengths
    assert [shown(page) for page, length in lengths.items() if length >= 200] == []
    # It says what it is, and leaves the rest to the site.
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def too_wide(text: str) -> Iterator[str]:
    """Find lines of 100 columns or more, apart from tables (also in lists) and blocks of code."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return (
        line
        for line in prose.splitlines()
        if len(line) >= 100 and not line.startswith("    ") and not line.lstrip().startswith("|")
    )


def paths_in(text: str) -> Iterator[str]:
    """Find the files and folders of the repository that a page names in backquotes."""
    for found in _CODE.finditer(text):
        name = found[1]
        if _FILE.fullmatch(name) or ("/" in name and _FOLDER.fullmatch(name)):
            yield name


def exists(name: str, page: Path) -> bool:
    """Return whether a file or folder of the repository has this name; it may hold a ``*``."""
    if "/" not in name:
        return any(path.match(name) for path in files())
    folders = (page.parent, *(ROOT / beginning for beginning in BEGINNINGS))
    return any(any(folder.glob(name)) for folder in folders)


@cache
def files() -> list[Path]:
    """List the files of the repository."""
    return [
        *ROOT.glob("*.*"),
        *(path for top in TOP for path in (ROOT / top).rglob("*") if path.is_file()),
    ]


def dead_links(page: Path, text: str) -> Iterator[str]:
    """Find links to files or headings that do not exist."""
    for found in _LINK.finditer(text):
        target, _, heading = found[1].partition("#")
        if ":" in target:
            continue
        linked = (page.parent / target).resolve() if target else page
        if not linked.exists() or (heading and heading not in anchors(linked)):
            yield found[1]


@cache
def anchors(page: Path) -> set[str]:
    """Return what a link to a page may name after its ``#``, as GitHub makes it of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))
