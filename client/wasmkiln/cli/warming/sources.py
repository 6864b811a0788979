"""What an argument or a line of a list names, as modules."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wasmkiln._requests import is_digest
from wasmkiln._untrusted import quoted
from wasmkiln.cli.warming import layout
from wasmkiln.cli.warming.lists import expanded
from wasmkiln.cli.warming.module import Module, from_file
from wasmkiln.cli.warming.reference import SCHEME, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from wasmkiln.cli.warming.web import Web

# Far more than a deployment has: a list of them takes 100 MB.
_MOST = 200_000
_DIGEST_LIKE = re.compile(r"[0-9A-Fa-f]{40,}")


@dataclass
class Sources:
    """Reads sources. Close it after the last module has been read."""

    recursive: bool = True
    # None: plain http to registries of this machine, https to all others.
    plain_http: bool | None = None
    fetch_limit_s: float = 300.0
    # One for each registry, so that many references share its connections.
    _webs: dict[str, Web] = field(default_factory=dict)
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def listed(self, arguments: tuple[str, ...]) -> list[str]:
        """Return each file, digest, layout and reference that the arguments name, once.

        A folder becomes its files. Raise click.UsageError for what is none of these, before
        anything is sent.
        """
        found: dict[str, None] = {}
        for source in expanded(arguments):
            for one in self._checked(source):
                found[one] = None
                if len(found) > _MOST:
                    raise click.UsageError(f"these are more than {_MOST:,} sources: warm fewer")
        return list(found)

    def modules(self, source: str) -> list[Module]:
        """Return the modules of one of `listed`. Raise OSError or WasmkilnError."""
        if source.startswith(SCHEME):
            return self._at(source)
        path = Path(source)
        if layout.is_layout(path):
            return layout.modules_in(path)
        if (digest := _digest(source)) and not path.exists():
            return [Module(digest, digest)]
        return [from_file(source)]

    def _checked(self, source: str) -> Iterator[str]:
        if source.startswith(SCHEME):
            try:
                parsed(source)
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            _need_oras()
            yield source
            return
        path = Path(source)
        try:
            exists = path.exists() or path.is_symlink()
        except PermissionError as error:
            raise click.UsageError(f"cannot read {quoted(source)}: {error.strerror}") from None
        except OSError:  # a name that no file can have
            exists = False
        if exists and path.is_dir() and not layout.is_layout(path):
            yield from self._files(path)
        elif exists or _digest(source):
            yield source
        elif _DIGEST_LIKE.fullmatch(source.removeprefix("sha256:")):
            raise click.UsageError(
                f"{quoted(source)} is neither a file nor a SHA-256 (64 lowercase hexadecimal "
                "digits)"
            )
        else:
            raise click.UsageError(
                f"{quoted(source)} does not exist: give files, folders, digests or "
                f"{SCHEME} references"
            )

    def _files(self, folder: Path) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            # A deployment must not miss a module without a word.
            raise click.UsageError(
                f"cannot read the folder {quoted(str(Path(error.filename)))}: {error.strerror}"
            )

        files: list[str] = []
        for here, folders, names in os.walk(folder, onerror=refuse):
            if not self.recursive:
                folders.clear()
            paths = [str(Path(here, name)) for name in names if name.endswith(".wasm")]
            # What cannot be looked at counts, and fails, as a broken link does.
            files += [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]  # noqa: PTH110, PTH113
        files.sort()
        if not files:
            raise click.UsageError(f"no *.wasm file in {folder}")
        yield from files

    def _at(self, source: str) -> list[Module]:
        # They need wasmkiln[oci].
        from wasmkiln.cli.warming.registry import modules_at
        from wasmkiln.cli.warming.web import Web

        reference = parsed(source)
        plain = reference.is_loopback if self.plain_http is None else self.plain_http
        with self._opening:
            web = self._webs.get(reference.host)
            if web is None:
                anywhere = self.plain_http is True
                web = Web(plain=plain, plain_anywhere=anywhere, limit_s=self.fetch_limit_s)
                self._webs[reference.host] = web
        return modules_at(source, reference, web, plain=plain)

    def __enter__(self) -> Sources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for web in self._webs.values():
            web.close()


def _digest(source: str) -> str:
    """Return the digest that a text is, or ""."""
    bare = source.removeprefix("sha256:")
    return bare if is_digest(bare) else ""


def _need_oras() -> None:
    """Raise click.UsageError without wasmkiln[oci]."""
    for package in ("oras", "requests"):
        if find_spec(package) is None:
            raise click.UsageError(
                f"{SCHEME} references need {package}: pip install 'wasmkiln[oci]'"
            )
