"""Write the lock files in requirements/, and the pins of the engines' wheels.

``python scripts/lock.py`` runs uv, which asks the configured package index. Versions that are
locked stay; ``--upgrade`` takes the newest that pyproject.toml allows. A lock file is for every
platform and for CPython 3.11 to 3.14, and has the SHA-256 of each file of each package.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin
from wasmkilnd.engines.install import KINDS, PINS, parse_spec, pinned_versions

ROOT = Path(__file__).resolve().parents[1]
OLDEST = "3.11"
WHEELS = ("--only-binary", ":all:")
PROJECT = ("pyproject.toml", "requirements/build.in")
LOCKS = {
    # With grpcurl, of which there is no wheel.
    "dev": (*PROJECT, "--extra", "dev"),
    # What is served has the versions that were tested.
    "server": (
        *(*PROJECT, *WHEELS, "--extra", "server", "--extra", "trace"),
        *("--constraint", "requirements/dev.txt"),
    ),
}
HEADER = "# Written by `make lock`: do not edit.\n"


def main(options: Sequence[str]) -> None:
    """Write every lock file and every list of pins."""
    for name, sources in LOCKS.items():
        file = ROOT / "requirements" / f"{name}.txt"
        lock(file, (*sources, *options), OLDEST)
    defaults = [f"{name}=={kind.default_version}" for name, kind in KINDS.items()]
    for engine in sorted({*defaults, *pinned_versions()}):
        name, version = parse_spec(engine)
        packages = (*KINDS[name].packages, *KINDS[name].optional)
        wanted = "".join(f"{package}=={version}\n" for package in packages)
        oldest = f"3.{KINDS[name].minors[0]}"
        lock(PINS / f"{name}-{version}.txt", ("-", *WHEELS), oldest, wanted)


def lock(file: Path, arguments: Sequence[str], oldest: str, wanted: str | None = None) -> None:
    """Write one lock file of what ``arguments`` or the text ``wanted`` ask for."""
    print(f"locking {file.relative_to(ROOT)}", file=sys.stderr)
    subprocess.run(
        [
            *(find_uv_bin(), "pip", "compile", "--quiet", "--universal", "--generate-hashes"),
            *("--no-header", "--python-version", oldest),
            *("--output-file", str(file), *arguments),
        ],
        cwd=ROOT,
        input=wanted,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    file.write_text(HEADER + file.read_text().removeprefix(HEADER))


if __name__ == "__main__":
    main(sys.argv[1:])
