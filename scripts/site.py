"""Build the documentation as a site: ``python -m scripts.site ZENSICAL``, or ``make site``.

The pages are those of ``docs/``, the READMEs of the clients, the changelog, and the reference that
is generated: of commands, settings, RPCs and messages. Links to files that
are no page become the file's name. Every warning of Zensical is an error; and so is, in what it
wrote, a link or anchor that leads nowhere, and anything that a browser would fetch from elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from wasmkilnd import settings_loader

from scripts import api_pages, commands

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / ".work" / "site" / "pages"
SITE = ROOT / ".work" / "site" / "html"
# Pages that are not in docs/, by their place on the site.
ELSEWHERE = {
    "how-to/cpp.md": ROOT / "client" / "cpp" / "README.md",
    "how-to/go.md": ROOT / "client" / "go" / "README.md",
    "how-to/java.md": ROOT / "client" / "java" / "README.md",
    "how-to/node.md": ROOT / "client" / "node" / "README.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}
MOST_TOLD = 30
_LINK = re.compile(r"\[(?P<label>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
_FETCHED_BY_STYLES = re.compile(r"""(?:url\(|@import )["']?(?:https?:)?//[^)"']+""")


def main(zensical: str) -> None:
    """Lay out the pages, build the site, and check it."""
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    lay_out()
    if apart := ", ".join(not_in_step()):
        sys.exit(f"make site: the navigation in zensical.toml and docs/ differ: {apart}")
    command = [zensical, "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if built.returncode:
        # Zensical colours each letter of a warning, and ends with a traceback.
        told = _COLOUR.sub("", built.stdout.decode()).partition("Traceback")[0]
        sys.exit(f"{told}make site: cannot build the site; the warnings are above")
    if wrong := sorted(set(mistakes(SITE))):
        shown = wrong[:MOST_TOLD]
        sys.exit("\n".join([*shown, f"make site: {len(wrong)} mistakes in what was built"]))
    where = SITE.relative_to(ROOT)
    # A browser runs no search on pages from a disk.
    print(f"the site is in {where}: open index.html; to search it too, serve it:")
    print(f"  python3 -m http.server --bind 127.0.0.1 --directory {where}")


def sources() -> dict[Path, str]:
    """Return the place on the site of each file that is a page."""
    docs = ROOT / "docs"
    pages = {page: str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    return pages | {source: place for place, source in ELSEWHERE.items()}


def generated() -> dict[str, str]:
    """Return the text of each page that is generated, by its place on the site."""
    pages = commands.pages() | api_pages.pages()
    return {f"reference/{name}": text for name, text in pages.items()}


def not_in_step() -> list[str]:
    """Return the pages that the navigation does not name once, and names without a page."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    named = Counter(_leaves(project["nav"]))
    pages = Counter([*sources().values(), *generated()])
    return sorted((named - pages) + (pages - named))


def _leaves(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list):
        for each in nav:
            yield from _leaves(each)
    elif isinstance(nav, dict):
        yield from _leaves(list(nav.values()))


def lay_out() -> None:
    """Write the pages, with links that fit their places, and copy the pictures."""
    shutil.copytree(ROOT / "docs", PAGES)
    shutil.copy(ROOT / "scripts" / "site.css", PAGES)
    places = sources()
    for source, place in places.items():
        (PAGES / place).write_text(relinked(source, place, places))
    for place, text in generated().items():
        (PAGES / place).write_text(text)
    with (PAGES / "reference" / "configuration.md").open("a") as page:
        page.write(f"\n## All settings\n\n{settings_loader.reference()}")


def relinked(source: Path, place: str, places: dict[Path, str]) -> str:
    """Return the text of a page, with the links of its place."""

    def link(found: re.Match[str]) -> str:
        target = (source.parent / found["path"]).resolve()
        if target in places:
            path = os.path.relpath(places[target], Path(place).parent)
            return f"[{found['label']}]({path}{found['anchor'] or ''})"
        if target.is_relative_to(ROOT / "docs") or not target.exists():
            return found[0]
        name = f"`{target.relative_to(ROOT)}`"
        return name if found["label"].startswith("`") else f"{found['label']} ({name})"

    parts = _FENCED.split(source.read_text())
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


class _Page(HTMLParser):
    """What a page links to, fetches, and can be linked at."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if values.get(_FETCHED.get(tag, "")):
            self.fetched.append(values[_FETCHED[tag]])


def mistakes(site: Path) -> Iterator[str]:
    """Find what leads nowhere, and what is fetched from elsewhere."""
    # The page for an unknown address names everything from the root of a web server.
    files = [file for file in site.rglob("*.html") if file.name != "404.html"]
    pages = {file: _Page(file) for file in files}
    for file, page in pages.items():
        name = file.relative_to(site)
        for link in page.links + page.fetched:
            if re.match(r"(?:[a-z]+:|//)", link):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{name}: {link} does not exist"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                yield f"{name}: {link} has no such heading"
        for link in page.fetched:
            if re.match(r"(?:https?:)?//", link):
                yield f"{name}: fetches {link}"
    for style in site.rglob("*.css"):
        for fetched in _FETCHED_BY_STYLES.findall(style.read_text()):
            yield f"{style.relative_to(site)}: fetches {fetched}"


if __name__ == "__main__":
    main(sys.argv[1])
