"""Write the lock files in requirements/, and the pins of the engines' wheels: `make lock`.

uv asks the configured package index. Versions that are locked stay; `--upgrade` takes the newest
that pyproject.toml allows. A lock file is for every platform and for CPython 3.11 to 3.14, and has
the SHA-256 of each file of each package.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin
from wasmkilnd.engines.install import KINDS, PINS, parse_spec, pinned_versions

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ("--only-binary", ":all:")
PROJECT = ("pyproject.toml", "requirements/build.in", *sys.argv[1:])
HEADER = "# Written by `make lock`: do not edit.\n"


def lock(file: Path, oldest: str, *arguments: str, wanted: str | None = None) -> None:
    """Write one lock file of what the arguments or the text `wanted` ask for."""
    print(f"locking {file.relative_to(ROOT)}", file=sys.stderr)
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
    # pip takes `redis[hiredis]`, which something asks for, for unpinned where a lock has `redis`.
    command += ["--no-header", "--no-strip-extras", "--python-version", oldest]
    command += ["--output-file", str(file), *arguments]
    subprocess.run(
        command, cwd=ROOT, input=wanted, text=True, check=True, stdout=subprocess.DEVNULL
    )
    file.write_text(HEADER + file.read_text().removeprefix(HEADER))


if __name__ == "__main__":
    # With grpcurl, of which there is no wheel.
    lock(ROOT / "requirements" / "dev.txt", "3.11", *PROJECT, "--extra", "dev")
    # What is served has the versions that were tested.
    extras = ("--extra", "server", "--extra", "trace", "--constraint", "requirements/dev.txt")
    lock(ROOT / "requirements" / "server.txt", "3.11", *PROJECT, *WHEELS, *extras)
    defaults = {f"{name}=={kind.default_version}" for name, kind in KINDS.items()}
    for name, version in map(parse_spec, sorted(defaults | {*pinned_versions()})):
        kind = KINDS[name]
        # For every machine, not for those alone that use a package.
        wanted = "".join(f"{each.partition(' ;')[0]}\n" for each in kind.at(version))
        lock(PINS / f"{name}-{version}.txt", f"3.{kind.minors[0]}", "-", *WHEELS, wanted=wanted)
