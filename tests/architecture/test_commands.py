"""Each command of the documentation is run by a test, or says that it is not; and ours exist.

A block of commands (``sh`` or ``console``) that no test runs has the title "not run by a test",
which the site shows above it. The others are counted here, beside the test that runs them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from wasmkiln.cli.app import app
from wasmkilnd.cli import command as daemon

from tests.architecture.imports import ROOT
from tests.e2e.console import sessions

DOCS = ROOT / "docs"
NOT_RUN = ' title="not run by a test"'
RUN = {
    "how-to/cache.md": (1, "tests/e2e/test_cache_tools.py"),
    "how-to/call-with-credentials.md": (5, "tests/e2e/test_access_clients.py"),
    "how-to/fleet.md": (5, "tests/e2e/test_fleet_page.py"),
    "how-to/deploy.md": (2, "tests/operators/test_systemd.py"),
    "how-to/host-store.md": (1, "tests/unit/client/test_recipe.py"),
    "how-to/hosts.md": (2, "tests/polyglot/test_hosts.py"),
    "how-to/http.md": (2, "tests/e2e/test_http.py"),
    "how-to/install.md": (1, "tests/e2e/test_completion.py"),
    "how-to/monitor.md": (1, "tests/operators/test_prometheus.py"),
    "how-to/verify.md": (1, "tests/e2e/test_cosign.py"),
    "how-to/warm.md": (1, "tests/e2e/test_api_examples.py"),
    "reference/admin-service.md": (4, "tests/e2e/test_api_examples.py"),
    "reference/api.md": (4, "tests/e2e/test_api_examples.py"),
    "reference/compile.md": (4, "tests/e2e/test_api_examples.py"),
    "reference/errors.md": (1, "tests/e2e/test_api_examples.py"),
    "reference/module-service.md": (5, "tests/e2e/test_api_examples.py"),
    "start/five-minutes.md": (7, "tests/e2e/test_first_steps.py"),
}
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
_BLOCK = re.compile(r"^```(sh|console)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_APART = re.compile(r"[|;()<>\n]|&&|\s#")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_IN_TEXT = re.compile(r"`(wasmkilnd? [a-z][^`]*)`")
_OURS = re.compile(r" *(?:[A-Z_]+=\S+ )*(?:\S*/)?(wasmkilnd? .*)")


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the blocks of commands of a page: what is behind the language, and the commands."""
    found = _BLOCK.findall((DOCS / page).read_text())
    return [(title, _typed(text) if kind == "console" else text) for kind, title, text in found]


def _typed(text: str) -> str:
    [commands] = sessions(f"```console\n{text}```\n")
    return "\n".join(each.text for each in commands)


def test_each_block_of_commands_has_no_title_or_says_that_it_is_not_run() -> None:
    titles = {(page, title) for page in PAGES for title, _ in blocks(page)}
    assert {(page, title) for page, title in titles if title not in ("", NOT_RUN)} == set()


def test_each_other_block_of_commands_is_run() -> None:
    without_title = {page: [title for title, _ in blocks(page)].count("") for page in PAGES}
    told = {page: count for page, count in without_title.items() if count}
    assert told == {page: count for page, (count, _) in RUN.items()}
    untested = [
        f"{page} is not in {test}"
        for page, (_, test) in RUN.items()
        if Path(page).stem not in (ROOT / test).read_text()
    ]
    assert untested == []


def commands(text: str) -> Iterator[list[str]]:
    """Find the commands of ours among commands, as words."""
    for part in _APART.split(text.replace("\\\n", " ")):
        if found := _OURS.fullmatch(part):
            yield shlex.split(found[1].rstrip('"'))


def unknown(words: list[str]) -> list[str]:
    """Return what a command does not know: subcommands, and options."""
    at: click.Command = app if words[0] == "wasmkiln" else daemon
    known = _options(at)
    wrong = []
    for word in words[1:]:
        if word.startswith("-") and len(word) > 1 and not re.match(r"-\d", word):
            wrong += [] if word.partition("=")[0] in known else [word]
        elif isinstance(at, click.Group) and (inner := _inner(at, word)):
            at = inner
            known |= _options(at)
        elif isinstance(at, click.Group) and not known_value(words, word):
            wrong.append(word)
    return wrong


def known_value(words: list[str], word: str) -> bool:
    """Return whether a word may be the value of an option before it, or stands for anything."""
    before = words[words.index(word) - 1]
    return before.startswith("--") or word in {"…", "..."}


def _inner(group: click.Group, name: str) -> click.Command | None:
    return group.get_command(click.Context(group), name)


def _options(command: click.Command) -> set[str]:
    params = command.get_params(click.Context(command))
    return {option for each in params for option in (*each.opts, *each.secondary_opts)}


def test_our_commands_exist_with_their_options() -> None:
    found = [
        (page, words) for page in PAGES for _, text in blocks(page) for words in commands(text)
    ]
    assert found
    assert [(page, words, wrong) for page, words in found if (wrong := unknown(words))] == []


def test_our_commands_in_sentences_exist() -> None:
    found = [(page, each) for page in PAGES for each in in_sentences(page)]
    assert found
    wrong = [
        f"{page}: {each}" for page, each in found if any(unknown(words) for words in commands(each))
    ]
    assert wrong == []


def in_sentences(page: str) -> list[str]:
    """Return our commands outside of blocks."""
    text = _FENCED.sub("", (DOCS / page).read_text())
    text = text.replace("\\|", "|")  # as in tables
    return [" ".join(each.split()) for each in _IN_TEXT.findall(text) if "[" not in each]
