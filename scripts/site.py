"""Build the documentation as a site: `make site`.

The pages are those of `docs/`, the READMEs of the clients, the changelog, and the reference that
is generated. Links to files that are no page become the file's name. Every warning of Zensical is
an error, as a link or anchor that leads nowhere is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from wasmkilnd import settings_loader

from scripts import reference
from scripts.version import ROOT

PAGES = ROOT / ".work" / "site" / "pages"
SITE = ROOT / ".work" / "site" / "html"
_LINK = re.compile(r"\[(?P<label>[^\]]*)\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Lay out the pages, build the site, and check it."""
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    lay_out()
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    named = re.findall(r"'([^']+\.md)'", str(project["nav"]))
    if apart := sorted({*named} ^ {str(page.relative_to(PAGES)) for page in PAGES.rglob("*.md")}):
        sys.exit(f"make site: the navigation in zensical.toml and docs/ differ: {apart}")
    command = [f"{sys.prefix}/bin/zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if built.returncode:
        # Zensical colours each letter of a warning, and ends with a traceback.
        told = _COLOUR.sub("", built.stdout.decode()).partition("Traceback")[0]
        sys.exit(f"{told}make site: cannot build the site; the warnings are above")
    # A browser runs no search on pages from a disk.
    print(f"see the site: python3 -m http.server --bind 127.0.0.1 --directory {SITE}")


def sources() -> dict[Path, str]:
    """Return the place on the site of each file that is a page."""
    docs = ROOT / "docs"
    pages = {page: str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    for readme in ROOT.glob("client/*/README.md"):
        pages[readme] = f"how-to/{readme.parent.name}.md"
    return pages | {ROOT / "CHANGELOG.md": "changelog.md"}


def lay_out() -> None:
    """Write the pages, with links that fit their places, and copy the pictures."""
    shutil.copytree(ROOT / "docs", PAGES)
    shutil.copy(ROOT / "scripts" / "site.css", PAGES)
    places = sources()
    for source, place in places.items():
        (PAGES / place).write_text(relinked(source, place, places))
    for name, text in reference.pages().items():
        (PAGES / "reference" / name).write_text(text)
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


if __name__ == "__main__":
    main()
