"""Install an engine's wheels, and take none whose SHA-256 is not the expected one.

``pins/<name>-<version>.txt`` lists the SHA-256 of every file of the tested versions, for all
platforms, as pip's requirements files do; ``make lock`` writes them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wasmkilnd.engines.install.command import EngineInstallError, run

PINS = Path(__file__).parent / "pins"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_REQUIREMENT = re.compile(r"(?P<wanted>\S+==\S+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)")
_OTHER_BYTES = "DO NOT MATCH THE HASHES"


class ForeignWheelError(EngineInstallError):
    """The package index served a file that is not one of those that were pinned."""


@dataclass(frozen=True, slots=True)
class Wheels:
    """The wheels that may be installed for one version of an engine."""

    hashes: Mapping[str, Sequence[str]]
    """For each ``package==version`` the SHA-256 of the files that are good; empty if unknown."""
    why: str
    """Who said so: "this release" or "--sha256"."""

    def install(self, python: Path, wanted: Sequence[str], report: Callable[[str], None]) -> None:
        """Install ``package==version``s into the environment of ``python``.

        Raises EngineInstallError; ForeignWheelError for a file that is not one of the pinned ones.
        """
        if not wanted:
            return
        report(f"installing {', '.join(wanted)}")
        if not self.hashes:
            _pip(python, wanted)
            return
        lines = [
            " ".join([package, *(f"--hash=sha256:{each}" for each in self.hashes[package])])
            for package in wanted
        ]
        with tempfile.NamedTemporaryFile("w", prefix="wheels-", suffix=".txt") as requirements:
            requirements.write("\n".join(lines) + "\n")
            requirements.flush()
            try:
                _pip(python, ["--require-hashes", "--requirement", requirements.name])
            except EngineInstallError as failure:
                if _OTHER_BYTES not in str(failure):
                    raise
                raise ForeignWheelError(
                    f"cannot install {', '.join(wanted)}: the package index served a file with"
                    f" another SHA-256 than those that {self.why} allows; find out who changed it"
                ) from None


def wheels_of(
    name: str, version: str, packages: Sequence[str], sha256: Sequence[str] = ()
) -> Wheels:
    """Return what may be installed: the files with these digests, or else the pinned ones.

    Raises EngineInstallError for a text that is no SHA-256.
    """
    for digest in sha256:
        if not _SHA256.fullmatch(digest):
            raise EngineInstallError(
                f"{digest!r} is not a SHA-256: expected 64 digits, 0 to 9 and a to f"
            )
    wanted = [f"{package}=={version}" for package in packages]
    if sha256:
        return Wheels(dict.fromkeys(wanted, sha256), "--sha256")
    pinned = pins_of(name, version)
    return Wheels({each: pinned[each] for each in wanted} if pinned else {}, "this release")


def pins_of(name: str, version: str) -> Mapping[str, Sequence[str]]:
    """Return the SHA-256 of each file of a tested version by ``package==version``.

    Raises EngineInstallError when the list of them is damaged.
    """
    file = PINS / f"{name}-{version}.txt"
    return pins_in(file) if file.is_file() else {}


def pins_in(file: Path) -> Mapping[str, Sequence[str]]:
    """Return the SHA-256 of each file by ``package==version``, as a list of pins has them.

    Raises EngineInstallError when the list is damaged, or not there.
    """
    if not file.is_file():
        raise EngineInstallError(f"cannot read {file}: install wasmkiln again")
    text = file.read_text().replace("\\\n", "")
    lines = (" ".join(line.split()) for line in text.splitlines())
    pins: dict[str, Sequence[str]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            found = _REQUIREMENT.fullmatch(line)
            if not found:
                raise EngineInstallError(f"cannot read {file}: install wasmkiln again")
            pins[found["wanted"]] = [each.rpartition(":")[2] for each in found["hashes"].split()]
    return pins


def pinned_versions() -> list[str]:
    """List ``name==version`` of what is pinned."""
    return sorted(file.stem.replace("-", "==", 1) for file in PINS.glob("*.txt"))


def _pip(python: Path, arguments: Sequence[str]) -> None:
    # The daemon's own pip installs into the other environment, which needs no pip of its own:
    # the Pythons of some distributions come without.
    run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install"),
            *("--quiet", "--no-input", "--disable-pip-version-check"),
            *("--only-binary", ":all:"),
            *arguments,
        ]
    )
